"""Losses that are means over the items of a whole step, whatever processes and micro-batches it is cut into."""

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor


class StepMean(LightningModule):
    """A module whose training loss is a sum over items divided by the number of items in the whole step.

    A mean per micro-batch would weight items by how many others happen to be beside them, and so change with the
    number of processes. Instead `training_step` returns `self.add(total, count)`; gradients add up as sums and are
    divided by the count over all ranks and micro-batches after the last backward pass of the step, so that callbacks,
    clipping and the optimiser see the gradient of the mean.
    """

    _items: Tensor | None = None
    _micro_batches = 0

    def add(self, total: Tensor, count: Tensor) -> Tensor:
        """What `training_step` returns: total () summed over this micro-batch's `count` () items."""
        count = count.detach().to(torch.float64)
        self._items = count if self._items is None else self._items + count
        self._micro_batches += 1
        # undo the averaging over micro-batches and over ranks that Lightning and DDP do
        return total * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def on_after_backward(self) -> None:
        assert self._items is not None
        if self._micro_batches < self.trainer.accumulate_grad_batches:
            return
        items, self._items, self._micro_batches = self._items, None, 0
        if self.trainer.world_size > 1:
            dist.all_reduce(items)
        scale = 1.0 / items.clamp(min=1).float()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, scale)
