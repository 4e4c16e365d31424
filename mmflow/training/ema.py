"""An exponential moving average of the weights, which is what is evaluated and kept."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override


class WeightEMA(WeightAveraging):
    """Validates with, saves and returns average weights; training goes on with its own.

    Lightning's class, with three changes, without which a run that is stopped while it validates, and goes on, would
    train the average; buffers, such as counts, would be averaged; and the average would stay on the CPU. In a
    checkpoint `state_dict` is the average, as every reader wants it. Not for sharded models.

    Args:
        decay: share of the average that stays at each step; it begins as the weights after the first one.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} is the share of the average that stays; give at least 0 and less than 1")
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.swapped = False  # the module holds the average, and the average's place the module's own weights

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.to(pl_module.device)  # it was made before the module was moved there

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_models(pl_module)

    @override
    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self.swapped = not self.swapped

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped:
            average, own = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["current_model_state"], checkpoint["state_dict"] = own, average
