"""Learning-rate schedules, as factors of the peak rate by step."""

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
