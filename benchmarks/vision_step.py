"""One training step (forward, loss, backward, clipping, AdamW) of ViT-B/16, Swin-T and CLIP ViT-B/32 against peers.

ViT and Swin have a linear layer for 1,000 classes, and timm and transformers as peers; CLIP has open_clip, and texts
padded to 77 tokens. All take the same batch of pictures of 224 x 224; ours alone also normalises it, which peers leave
to the loader. Peak memory is that of a fresh process that makes two steps. On a GPU all run compiled under bf16.

    python benchmarks/vision_step.py --batch 2 --repeats 5 --clock cpu
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import mmflow.torchaudio_cpu  # isort: skip  (before transformers)
import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before timm)

import open_clip
import timing
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from mmflow.systems.clip.model import CLIP
from mmflow.systems.swin.model import Swin
from mmflow.systems.vit.model import ViT

CLASSES, TOKENS, END = 1000, 77, 49_407
DROP_PATH = 0.1  # of Swin-T, as published

Batch = dict[str, Tensor]


class Ours(nn.Module):
    """Loss of an encoder of ours with a linear layer."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, CLASSES)

    def forward(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.head(self.encoder(batch["images"]).pooled), batch["labels"])


class Timm(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.model(batch["images"]), batch["labels"])


class Transformers(Timm):
    def forward(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.model(batch["images"]).logits, batch["labels"])


class OurClip(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        images, texts = self.model.encode_image(batch["images"]), self.model.encode_text(batch["tokens"])
        return self.model.similarity.loss_sum(images, texts, images, texts, 0) / len(images)


class OpenClip(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, open_clip.ClipLoss()

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(*self.model(batch["images"], batch["tokens"]))


def contestants(quick: bool) -> dict[str, dict[str, Callable[[], nn.Module]]]:
    """Of each model, ours first; `quick` makes them so small that only their wiring is tried."""
    width, depth, heads = (64, 1, 1) if quick else (768, 12, 12)
    ours: dict[str, Any] = {"dim": width, "depth": depth, "num_heads": heads}
    swin: dict[str, Any] = {
        "depths": (1, 1) if quick else (2, 2, 6, 2),
        "num_heads": (1, 2) if quick else (3, 6, 12, 24),
    }
    start, text_width = 32 if quick else 96, 64 if quick else 512
    text: dict[str, Any] = {"depth": depth, "dim": text_width, "num_heads": text_width // 64}
    return {
        "ViT-B/16": {
            "mmflow": lambda: Ours(ViT(**ours)),
            "timm": lambda: Timm(timm.models.VisionTransformer(embed_dim=width, depth=depth, num_heads=heads)),
            "transformers": lambda: Transformers(
                transformers.ViTForImageClassification(
                    transformers.ViTConfig(
                        hidden_size=width,
                        num_hidden_layers=depth,
                        num_attention_heads=heads,
                        intermediate_size=4 * width,
                        num_labels=CLASSES,
                        attn_implementation="sdpa",
                    )
                )
            ),
        },
        "Swin-T": {
            "mmflow": lambda: Ours(Swin(dim=start, drop_path=DROP_PATH, **swin)),
            "timm": lambda: Timm(timm.models.SwinTransformer(embed_dim=start, drop_path_rate=DROP_PATH, **swin)),
            "transformers": lambda: Transformers(
                transformers.SwinForImageClassification(
                    transformers.SwinConfig(embed_dim=start, drop_path_rate=DROP_PATH, num_labels=CLASSES, **swin)
                )
            ),
        },
        "CLIP ViT-B/32": {
            "mmflow": lambda: OurClip(CLIP.vit_b32("gelu", vision=ours, text=text)),
            "open_clip": lambda: OpenClip(
                open_clip.CLIP(
                    512,
                    open_clip.CLIPVisionCfg(layers=depth, width=width, patch_size=32),
                    open_clip.CLIPTextCfg(layers=depth, width=text_width, heads=text_width // 64),
                )
            ),
        },
    }


def make_batch(rows: int, device: str) -> Batch:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, END - 1, (rows, TOKENS), generator=draw)
    tokens[:, 20], tokens[:, 21:] = END, 0
    return {
        "images": torch.rand(rows, 3, 224, 224, generator=draw).to(device),
        "labels": torch.randint(CLASSES, (rows,), generator=draw).to(device),
        "tokens": tokens.to(device),
    }


def stepper(make: Callable[[], nn.Module], batch: Batch) -> Callable[[], None]:
    torch.manual_seed(0)
    return timing.stepper(make(), batch, lr=1e-5, weight_decay=0.05)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=128 if cuda else 2, help="pictures, and texts of CLIP")
    parser.add_argument("--model", help="only this one, such as Swin-T")
    parser.add_argument("--peak", metavar="PEER", help="only print the peak memory of this one of --model, in bytes")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.repeats = 2, 1
    torch.set_num_threads(options.threads)
    batch, models = make_batch(options.batch, "cuda" if cuda else "cpu"), contestants(options.quick)
    if options.peak:
        return timing.print_peak(stepper(models[options.model][options.peak], batch))

    for model in [options.model] if options.model else list(models):
        options.model = model
        steps = {name: stepper(make, batch) for name, make in models[model].items()}
        seconds = timing.alternate(steps, options)
        steps.clear()  # their memory is needed for the next ones
        extra: dict[str, dict[str, Any]] = {name: {} for name in seconds}
        for name in seconds:
            if not options.quick or name == "open_clip":  # a process that imports everything takes 5 s
                extra[name]["peak_GB"] = timing.peak_bytes(name, options) / 1e9
        timing.report(f"{model} training step, {options.batch} pictures of 224", seconds, extra)


if __name__ == "__main__":
    main()
