"""Learning-rate schedules, as factors of the peak rate by step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def linear_warmup_decay(optimizer: Optimizer, total_steps: int, warmup: float = 0.08) -> LambdaLR:
    """Linear from 0 to the peak over the first `warmup` share of the steps, then linear to 0 at `total_steps`.

    The first step already learns: its factor is 1 / warm-up steps.
    """
    rise = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        return min((step + 1) / rise, max(0.0, (total_steps - step) / max(1, total_steps - rise)))

    return LambdaLR(optimizer, factor)


def cosine(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.05, start: float = 0.0, floor: float = 0.0
) -> LambdaLR:
    """Linear from `start` to the peak over the first `warmup` share of the steps, then half a cosine down to `floor` at
    `total_steps` (Loshchilov and Hutter 2016, arXiv:1608.03983).

    start, floor: as factors of the peak. The first step already learns: it is one warm-up step above `start`.
    """
    for name, share in (("warmup", warmup), ("start", start), ("floor", floor)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} is a share of the steps or of the peak rate; give a number in 0..1")
    rise = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rise:
            return start + (1 - start) * (step + 1) / rise
        along = min(1.0, (step - rise) / max(1, total_steps - rise))
        return floor + (1 - floor) * (1 + math.cos(math.pi * along)) / 2

    return LambdaLR(optimizer, factor)


def tri_stage(
    optimizer: Optimizer, total_steps: int, shares: tuple[float, float, float] = (0.1, 0.4, 0.5), floor: float = 0.05
) -> LambdaLR:
    """Linear warm-up from 1 % of the peak, hold, exponential decay to `floor` of the peak.

    shares: of the steps that each of the three takes; they add up to 1, or to more for a training that ends before
    its schedule does.
    """
    if min(shares) < 0 or sum(shares) < 1 - 1e-6:
        raise ValueError(f"shares={shares} must be at least 0 and add up to 1 or more, not {sum(shares):g}")
    rise, hold = round(shares[0] * total_steps), round(shares[1] * total_steps)
    fall = max(1, round(sum(shares) * total_steps) - rise - hold)

    def factor(step: int) -> float:
        if step < rise:
            return 0.01 + 0.99 * step / rise
        return floor ** min(1.0, max(0, step - rise - hold) / fall)

    return LambdaLR(optimizer, factor)
