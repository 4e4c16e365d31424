"""Accuracy of our ViT and Swin beside timm's of the same size: same pictures, order, recipe and budget, several seeds.

The pictures are those of a folder with train/CLASS and test/CLASS, such as CIFAR-10's. Both are trained from their own
initial weights. Reported are the mean over seeds and its spread, the parameters, and the seconds of a step.

    python benchmarks/vision_accuracy.py --folder FOLDER/CIFAR-10-images --steps 600
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before timm)

import numpy as np
import timing
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmflow.systems.swin.model import Swin
from mmflow.systems.vit.model import ViT
from mmflow.training.optimizers import is_decayed

SIDE = 32
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
Part = tuple[Tensor, Tensor]  # pictures (N, 3, 32, 32) uint8 and labels (N,)


class Ours(nn.Module):
    """An encoder of ours with a linear layer."""

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).pooled)


class Theirs(nn.Module):
    """A model of timm's, which takes normalised pictures; its head begins at zero, too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - MEAN[0]) / STD[0])


def models(classes: int) -> dict[str, Callable[[], nn.Module]]:
    vit: dict[str, Any] = {"patch_size": 4, "depth": 4, "num_heads": 4}
    swin: dict[str, Any] = {"patch_size": 2, "depths": (2, 2), "num_heads": (2, 4)}
    return {
        "ours/vit": lambda: Ours(ViT(SIDE, dim=64, pool="mean", mean=MEAN, std=STD, **vit), classes),
        "timm/vit": lambda: Theirs(
            timm.models.VisionTransformer(
                SIDE, embed_dim=64, num_classes=classes, class_token=False, global_pool="avg", fc_norm=False, **vit
            )
        ),
        "ours/swin": lambda: Ours(Swin(SIDE, dim=24, window=4, mean=MEAN, std=STD, **swin), classes),
        "timm/swin": lambda: Theirs(
            timm.models.SwinTransformer(
                SIDE, embed_dim=24, window_size=4, num_classes=classes, drop_path_rate=0.0, **swin
            )
        ),
    }


def read(folder: Path) -> Part:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(path, number) for number, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE))) for path, _ in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor([label for _, label in files])


def made(count: int) -> Part:
    """Pictures of noise under bars that tell the class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=draw)
    pixels = torch.randint(0, 200, (count, 3, SIDE, SIDE), generator=draw)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, 8 * label : 8 * label + 8] += 55
    return pixels.to(torch.uint8), labels


def train(make: Callable[[], nn.Module], seed: int, parts: tuple[Part, Part], options: argparse.Namespace) -> dict:
    """Accuracy on the second part of a model trained on the first, and the seconds of a step."""
    torch.manual_seed(seed)
    model, (pixels, labels) = make(), parts[0]
    decayed = {name: is_decayed(name, p) and "pos_embed" not in name and "bias_table" not in name
               for name, p in model.named_parameters()}  # fmt: skip
    groups = [
        {"params": [p for name, p in model.named_parameters() if decayed[name] is kind], "weight_decay": 0.05 * kind}
        for kind in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, fused=True)
    draw, rise = torch.Generator().manual_seed(seed), max(1, options.steps // 20)
    began = timing.CLOCKS[options.clock]()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            along = (step - rise) / max(1, options.steps - rise)
            group["lr"] = options.lr * ((step + 1) / rise if step < rise else (1 + math.cos(math.pi * along)) / 2)
        rows = torch.randint(len(pixels), (options.batch,), generator=draw)
        x = pixels[rows].float() / 255
        mirrored = torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5
        x = torch.where(mirrored, x.flip(3), x)
        down, across = torch.randint(9, (2,), generator=draw).tolist()  # a crop out of 4 pixels of padding
        x = F.pad(x, (4, 4, 4, 4))[:, :, down : down + SIDE, across : across + SIDE]
        loss = F.cross_entropy(model(x), labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = (timing.CLOCKS[options.clock]() - began) / options.steps
    with torch.no_grad():
        model.eval()
        found = torch.cat([model(chunk.float() / 255).argmax(1) for chunk in parts[1][0].split(200)])
    return {
        "accuracy": float((found == parts[1][1]).double().mean()), "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--folder", type=Path, help="with train/CLASS and test/CLASS; by default made pictures")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch, options.seeds = 2, 8, 1
    torch.set_num_threads(options.threads)
    parts = (read(options.folder / "train"), read(options.folder / "test")) if options.folder else (made(64), made(16))
    contestants = models(int(parts[0][1].max()) + 1)
    runs: dict[str, list[dict]] = {name: [] for name in contestants}
    for seed in range(options.seeds):
        for name, make in contestants.items():
            runs[name].append(train(make, seed, parts, options))
            print(f"seed {seed}  {name:10} {runs[name][-1]}", flush=True)
    for kind in ("vit", "swin"):
        names = [f"{whose}/{kind}" for whose in ("ours", "timm")]
        extra = {name: summary(runs[name]) for name in names}
        title = f"{kind}, {options.steps} steps of {options.batch} pictures, seconds of a step"
        timing.report(title, {name: [run["seconds"] for run in runs[name]] for name in names}, extra)


def summary(runs: list[dict]) -> dict[str, Any]:
    """The columns beside the seconds."""
    shares = [run["accuracy"] for run in runs]
    spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
    return {"accuracy": statistics.mean(shares), "spread": spread, "parameters": runs[0]["parameters"]}


if __name__ == "__main__":
    main()
