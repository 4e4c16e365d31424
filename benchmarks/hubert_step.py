"""One training step of HuBERT Base (forward, loss, backward, clipping, AdamW) against torchaudio and transformers.

All take the same batch, the same recipe (dropouts, layer drop 0.05, 80 % masking) and the same optimiser. torchaudio's
`hubert_pretrain_base` draws masks and makes logits itself; transformers has no pretraining head, so its encoder gets
ours. Peak memory is that of a fresh process that makes two steps. On a GPU all run compiled under bf16 autocast.

    python benchmarks/hubert_step.py --threads 2 --seconds 8 --batch 2
"""

from collections.abc import Callable
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.nn.masking import span_mask
from mmflow.systems.hubert.model import (
    SAMPLE_RATE,
    Hubert,
    HubertPretrainingHead,
    masked_prediction_loss,
    num_frames,
)
from mmflow.torchaudio_cpu import torchaudio  # before transformers, so that it finds one that imports

PENALTY = 10.0
FORWARD_FLOP = 15.4e9  # per second of audio: 4.9 convolutions, 0.5 positions, 8.5 linear layers, 1.4 attention
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the makers' data sheets

Batch = dict[str, Tensor]


class Ours(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.hubert, self.head = Hubert.base(), HubertPretrainingHead(768, [classes])

    def forward(self, batch: Batch) -> Tensor:
        out = self.hubert(batch["audio"], mask=batch["mask"])
        (logits,) = self.head(out.last)
        sums = masked_prediction_loss(logits, batch["units"], batch["mask"])
        return sums.masked_nll / sums.masked_count + PENALTY * out.feature_penalty / batch["units"].numel()


class Torchaudio(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = torchaudio.models.hubert_pretrain_base(num_classes=classes)

    def forward(self, batch: Batch) -> Tensor:
        masked, _, penalty = self.model(batch["audio"], batch["units"])
        first = torch.zeros(len(masked), dtype=torch.int64, device=masked.device)  # where it puts the right unit
        return F.cross_entropy(masked.float(), first) + PENALTY * penalty


class Transformers(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        from transformers import HubertConfig, HubertModel

        config = HubertConfig(
            activation_dropout=0.0, feat_proj_dropout=0.1, layerdrop=0.05, attn_implementation="sdpa"
        )  # fmt: skip
        self.hubert, self.head = HubertModel(config), HubertPretrainingHead(768, [classes])

    def forward(self, batch: Batch) -> Tensor:
        out = self.hubert(batch["audio"], mask_time_indices=batch["mask"])
        (logits,) = self.head(out.last_hidden_state)
        sums = masked_prediction_loss(logits, batch["units"], batch["mask"])
        return sums.masked_nll / sums.masked_count  # it does not give the conv features that the penalty needs


CONTESTANTS: dict[str, type[nn.Module]] = {"mmflow": Ours, "torchaudio": Torchaudio, "transformers": Transformers}


def stepper(name: str, batch: Batch, classes: int) -> Callable[[], Any]:
    """A function that makes one optimiser step on the batch."""
    torch.manual_seed(0)
    return timing.stepper(CONTESTANTS[name](classes), batch, clip=10.0, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)


def make_batch(rows: int, seconds: float, classes: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    frames = num_frames(round(seconds * SAMPLE_RATE))
    return {
        "audio": (torch.randn(rows, round(seconds * SAMPLE_RATE), generator=generator) / 10).to(device),
        "units": torch.randint(classes, (rows, frames), generator=generator).to(device),
        "mask": span_mask(torch.full((rows,), frames), generator=generator).to(device),
    }


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=32 if cuda else 2, help="utterances")
    parser.add_argument("--seconds", type=float, default=15.6 if cuda else 4.0, help="length of each")
    parser.add_argument("--classes", type=int, default=500, help="units; the paper has 100, then 500")
    parser.add_argument("--peak", choices=CONTESTANTS, help="only print the peak memory of this one, in bytes")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.seconds, options.repeats = 1, 1.0, 1
    torch.set_num_threads(options.threads)
    batch = make_batch(options.batch, options.seconds, options.classes, "cuda" if cuda else "cpu")
    if options.peak:
        return timing.print_peak(stepper(options.peak, batch, options.classes))

    steps = {name: stepper(name, batch, options.classes) for name in CONTESTANTS}
    seconds = timing.alternate(steps, options)
    extra: dict[str, dict[str, Any]] = {}
    audio_s = options.batch * options.seconds
    for name, runs in seconds.items():
        best = sorted(runs)[len(runs) // 2]
        extra[name] = {"audio_s_per_s": audio_s / best, "peak_GB": timing.peak_bytes(name, options) / 1e9}
        for card, flops in PEAK_FLOPS.items():
            if cuda and card in torch.cuda.get_device_name():
                extra[name]["mfu"] = 3 * FORWARD_FLOP * audio_s / best / flops
    timing.report(
        f"HuBERT Base training step, {options.batch} x {options.seconds:g} s, {options.classes} units", seconds, extra
    )


if __name__ == "__main__":
    main()
