"""Models in which nothing is at its first value, so that a mistake in a map of weights shows."""

import torch
from torch import nn


def shaken(module: nn.Module) -> nn.Module:
    """`module` in eval mode, with every tensor random: biases, norms, tokens, positions and tables too."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return module.eval()
