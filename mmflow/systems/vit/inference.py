"""Classes and features of pictures: called on tensors, or as a `predict` stage that writes them beside shards.

B pictures, N tokens, D width, C classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmflow.nn.published import weights_fingerprint
from mmflow.systems.vit.weights import load_classifier

Arrays = dict[str, list[np.ndarray]]  # field -> one of each valid row
Classifier = tuple[nn.Module, nn.Linear, list[str] | None]  # encoder, head, names of the classes


class Guess(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


class PictureClasses(LightningModule):
    """What a classifier makes of pictures: `classes(images)`, or by `predict` a sidecar for each shard.

    A SidecarWriter names the field that is written: `logits`, float32 (C,), or `classes`, int64 (k,), the k most
    likely ones.

    Args:
        checkpoint: of ours or published.
        k: classes that are told.
        load: reads the checkpoint; `mmflow.systems.swin.weights.load_classifier` for a Swin.
    """

    def __init__(self, checkpoint: str, k: int = 5, load: Callable[[str], Classifier] = load_classifier) -> None:
        super().__init__()
        self.encoder, self.head, self.labels = load(checkpoint)
        self.eval()
        if not 1 <= k <= self.head.out_features:
            raise ValueError(f"k={k} of {self.head.out_features} classes; give at least 1 and at most all")
        self.k = k
        self.sidecar_meta = {"model": type(self).__name__, "fingerprint": fingerprint(self), "k": k}
        if self.labels is not None:
            self.sidecar_meta["labels"] = self.labels

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, 3, H, W) in [0, 1]."""
        return self.head(self.encoder(images).pooled).float()

    def classes(self, images: Tensor) -> list[list[Guess]]:
        """The k most likely classes of each picture (B, 3, H, W), by name or, where there are none, by number."""
        top = self(images).softmax(1).topk(self.k)
        names = self.labels or [str(number) for number in range(self.head.out_features)]
        return [
            [Guess(names[number], share) for share, number in zip(*row, strict=True)]
            for row in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Arrays:  # noqa: ARG002
        logits = self(batch["image"][batch["valid"]])
        return {"logits": list(logits.cpu().numpy()), "classes": list(logits.topk(self.k).indices.cpu().numpy())}


class PictureFeatures(LightningModule):
    """The features of pictures: called on them, or by `predict` a sidecar with `features` for each shard.

    Args:
        encoder: a `mmflow.nn.encoders.VisionEncoder`, read from a file by a function such as
            `mmflow.systems.vit.weights.load_vit`.
        layer: a layer by its name; by default the pooled vector (D,).
        tokens: all tokens of the layer (N, D) rather than their mean.
        dtype: of the numbers, float32 or float16.
    """

    def __init__(
        self, encoder: nn.Module, layer: str | None = None, tokens: bool = False, dtype: str = "float32"
    ) -> None:
        super().__init__()
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype={dtype!r} must be float32 or float16")
        if tokens and layer is None:
            raise ValueError("tokens are those of a layer; name one, such as layer: '12'")
        self.encoder, self.layer, self.tokens, self.numbers = encoder, layer, tokens, dtype
        self.eval()
        what = {"layer": layer or "pooled", "tokens": tokens, "dtype": dtype}
        self.sidecar_meta = {"model": type(self).__name__, "fingerprint": fingerprint(self), **what}

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, D), or (B, N, D) with `tokens`, of pictures (B, 3, H, W) in [0, 1]."""
        out = self.encoder(images)
        if self.layer is None:
            return out.pooled
        if self.layer not in out.layers:
            raise ValueError(f"layer={self.layer!r} is none of this encoder's: {', '.join(out.layers)}")
        return out.layers[self.layer] if self.tokens else out.layers[self.layer].mean(1)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Arrays:  # noqa: ARG002
        return {"features": list(self(batch["image"][batch["valid"]]).cpu().numpy().astype(self.numbers))}


def fingerprint(module: nn.Module) -> str:
    """Names the weights of a module."""
    return weights_fingerprint(module.state_dict(), type(module).__name__)
