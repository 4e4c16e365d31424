"""Parts that fail, or take their time, where a test wants it; named in configs of tests."""

import time
from typing import Any

from torch import Tensor

from mmflow.systems.hubert.data import SpeechUnits, Utterances, keep
from mmflow.systems.hubert.training import HubertPretraining


class NotANumber(HubertPretraining):
    """Its loss is NaN at step 7, in the second process only where there are two."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        ill = self.global_step == 7 and self.global_rank == self.trainer.world_size - 1
        return loss * float("nan") if ill else loss


class BrokenWorkers(SpeechUnits):
    """The code that prepares its samples has a fault."""

    def transforms(self, training: bool) -> Any:
        prepare, collate = super().transforms(training)
        return (fail if training else prepare), collate


def fail(sample: Any, rng: Any) -> Any:
    raise KeyError(f"no such thing in {sample['__key__']}")


class SlowUtterances(Utterances):
    """Each of its utterances takes a while."""

    def transforms(self, training: bool) -> Any:
        _, collate = super().transforms(training)
        return slowly, collate


def slowly(sample: Any, rng: Any) -> Any:
    time.sleep(0.06)
    return keep(sample, rng)
