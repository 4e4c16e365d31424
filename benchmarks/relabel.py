"""Relabelling: a whole predict stage (read, decode, encode, find the nearest cluster, write shards) against the bare
forward passes of the encoder over the same batches, which lie in memory. Layer 6 of an untrained HuBERT Base.

    python benchmarks/relabel.py --threads 2
"""

import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before Lightning)

import shutil
import tempfile
from pathlib import Path

import timing
import torch
from lightning.pytorch import Trainer
from speech import write_speech
from torch import Tensor, nn

from mmflow.data.sidecar import SidecarWriter
from mmflow.systems.hubert.data import Utterances
from mmflow.systems.hubert.kmeans import KMeans
from mmflow.systems.hubert.model import Hubert

LAYER = 6


class Layer(nn.Module):
    """What HubertLayer is, without a checkpoint."""

    fingerprint = "untrained"

    def __init__(self, hubert: Hubert) -> None:
        super().__init__()
        self.hubert, self.dim = hubert, hubert.dim
        del hubert.blocks[LAYER:]

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        out = self.hubert(audio, lengths)
        return out.layers[str(LAYER)], out.frame_lengths


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of an utterance")
    parser.add_argument("--minutes", type=float, default=60.0 if torch.cuda.is_available() else 1.5, help="in all")
    parser.add_argument("--clusters", type=int, default=500)
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.minutes, options.repeats = 1.0, 0.1, 1
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    module = KMeans(Layer(Hubert.base()).eval(), options.clusters)
    nn.init.normal_(module.centroids)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        spec = write_speech(Path(folder), max(4, round(60 * options.minutes / options.seconds)), options.seconds)

        def data() -> Utterances:
            return Utterances(spec=str(spec), batch_seconds=30.0, predict_splits=["train"])

        def stage() -> None:
            shutil.rmtree(f"{folder}/stage", ignore_errors=True)
            trainer = Trainer(
                accelerator="auto", devices=1, default_root_dir=f"{folder}/stage", logger=False,
                enable_progress_bar=False, enable_model_summary=False, callbacks=[SidecarWriter("units")],
            )  # fmt: skip
            trainer.predict(module, datamodule=data(), return_predictions=False)

        # before the first stage runs, whose module would be moved
        source = data()
        corpus = source.corpus("train")
        source.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        batches = [(batch["audio"], batch["lengths"]) for batch in source.once("train", source.usable["train"])]
        assert sum(len(lengths) for _, lengths in batches) == len(corpus)

        @torch.no_grad()
        def forward() -> None:
            encoder = module.features.to(device)
            for audio, lengths in batches:
                encoder(audio.to(device), lengths.to(device))

        seconds = timing.alternate({"predict stage": stage, "bare forward": forward}, options)
    timing.report(f"relabelling {options.minutes:g} minutes, K={options.clusters}", seconds)


if __name__ == "__main__":
    main()
