import pytest
import torch
from lightning.pytorch import LightningModule

from mmflow.training.optimizers import adamw


class Scale(LightningModule):
    def __init__(self, precision):
        super().__init__()
        self.factor, self.fixed = torch.nn.Parameter(torch.tensor([2.0])), torch.nn.Parameter(torch.tensor([3.0]))
        self.fixed.requires_grad_(False)
        self._trainer = type("Trainer", (), {"precision": precision})()


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", False), ("16-mixed", False)])
def test_one_kernel_except_under_mixed_precision(precision, fused):
    optimizer = adamw(Scale(precision), lr=0.1, eps=1e-6, weight_decay=0.01)
    assert optimizer.defaults["fused"] is fused


def test_the_first_step_is_lr_in_the_direction_of_the_gradient_after_the_decay():
    module = Scale("32-true")
    optimizer = adamw(module, lr=0.1, eps=1e-6, weight_decay=0.01)
    (module.factor * module.fixed).sum().backward()
    optimizer.step()
    assert module.factor.item() == pytest.approx(2.0 * (1 - 0.1 * 0.01) - 0.1, abs=1e-5)
    assert module.fixed.item() == 3.0
