"""Reading speech: decoded, cropped, with units and masks in batches, against less work on the same bytes.

"soundfile" only decodes the same files from memory, in as many processes. "webdataset" is the plain pipeline over the
same shards: shuffle, decode, crop to the shortest, stack; it neither joins units nor draws masks.

    python benchmarks/loading.py --seconds 12
    python benchmarks/loading.py --seconds 3 --workers 2
"""

import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile
import timing
import torch
import webdataset
from speech import write_speech
from torch.utils.data import DataLoader, Dataset

from mmflow.data.loader import TrainingOrder
from mmflow.systems.hubert.data import SpeechUnits

ROWS = 8  # utterances per batch


class Bare(Dataset):
    """Decodes the audio of one batch and drops it."""

    def __init__(self, batches: list[list[bytes]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> int:
        return sum(len(decode(data)) for data in self.batches[number])


def decode(data: bytes) -> Any:
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


def crop_and_stack(audio: list[Any]) -> torch.Tensor:
    size = min(map(len, audio))
    return torch.stack([torch.from_numpy(one[:size]) for one in audio])


def plain_pipeline(shards: list[str]) -> Any:
    return (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
        .shuffle(64)
        .to_tuple("flac")
        .map_tuple(decode)
        .batched(ROWS, collation_fn=lambda rows: crop_and_stack([audio for (audio,) in rows]))
    )


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of an utterance; LibriSpeech has 12, commands 3")
    parser.add_argument("--minutes", type=float, default=40.0, help="of audio in all")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode; 0: the main one")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.minutes, options.repeats = 2.0, 1.0, 1
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        utterances = max(2 * ROWS, round(60 * options.minutes / options.seconds))
        spec = write_speech(Path(folder), utterances, options.seconds)
        units = {"units": f"{folder}/units"}
        data = SpeechUnits(spec=str(spec), sidecars=units, batch_size=ROWS, lanes=1, num_workers=options.workers)
        corpus = data.corpus("train")
        plan = data.plan()
        steps = len(plan.epoch(0)[0])

        def planned() -> Iterator[Any]:
            return itertools.islice(iter(TrainingOrder(plan, 0, 0, 1)), steps)

        places = [[corpus.place(number) for number in micro.ids] for micro in planned()]
        bare = Bare([[corpus.shards[shard].read(row, "flac") for shard, row in batch] for batch in places])
        shards = [shard.path for shard in corpus.shards]

        def ours() -> int:
            loader = data.loader("train", TrainingOrder(plan, 0, 0, 1), training=True)
            return sum(len(batch["audio"]) for batch in itertools.islice(loader, steps))

        def soundfile_loop() -> int:
            loader = DataLoader(bare, batch_size=None, num_workers=options.workers)
            return sum(loader)

        def plain_webdataset() -> int:
            loader = DataLoader(plain_pipeline(shards), batch_size=None, num_workers=options.workers)
            return sum(len(batch) for batch in itertools.islice(loader, steps))

        contestants = {"mmflow": ours, "soundfile": soundfile_loop, "webdataset": plain_webdataset}
        seconds = timing.alternate(contestants, options)
        title = f"loading {steps} batches of {ROWS} utterances of {options.seconds:g} s, {options.workers} workers"
        timing.report(title, seconds)


if __name__ == "__main__":
    main()
