"""Learning rates by step."""

import pytest
import torch

from mmflow.training.schedules import cosine, linear_warmup_decay, tri_stage


def factors(schedule, steps: int) -> list[float]:
    """Of the peak, at each step."""
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0] / 2)
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)


def test_the_rate_rises_over_the_first_steps_and_falls_to_zero(optimizer):
    found = factors(linear_warmup_decay(optimizer, total_steps=10, warmup=0.4), 11)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])


def test_a_training_of_few_steps_starts_at_the_peak(optimizer):
    assert factors(linear_warmup_decay(optimizer, total_steps=2, warmup=0.08), 3) == pytest.approx([1.0, 1.0, 0.0])


def test_three_stages_rise_hold_and_decay(optimizer):
    found = factors(tri_stage(optimizer, total_steps=10, shares=(0.2, 0.4, 0.4)), 12)
    assert found[:2] == pytest.approx([0.01, 0.505])
    assert found[2:7] == pytest.approx([1.0] * 5)
    assert found[7:11] == pytest.approx([0.05**0.25, 0.05**0.5, 0.05**0.75, 0.05])
    assert found[11] == pytest.approx(0.05)  # stays at the floor


def test_one_step_of_three_stages_has_a_rate(optimizer):
    assert factors(tri_stage(optimizer, total_steps=1), 1) == pytest.approx([1.0])


def test_shares_that_do_not_add_up_are_refused(optimizer):
    with pytest.raises(
        ValueError, match=r"shares=\(0.1, 0.4, 0.4\) must be at least 0 and add up to 1 or more, not 0.9"
    ):
        tri_stage(optimizer, 10, shares=(0.1, 0.4, 0.4))
    with pytest.raises(ValueError, match="must be at least 0"):
        tri_stage(optimizer, 10, shares=(-0.1, 0.6, 0.5))


def test_a_training_may_end_before_its_schedule(optimizer):
    """The ten-hour recipe of the paper: 8,000 steps of warm-up and a decay over 72,000, of which 17,000 are taken."""
    schedule = tri_stage(optimizer, total_steps=25_000, shares=(0.32, 0.0, 2.88))
    factor = schedule.lr_lambdas[0]
    assert factor(8000) == 1.0
    assert factor(25_000) == pytest.approx(0.05 ** (17 / 72))
    assert tri_stage(optimizer, total_steps=80_000, shares=(0.1, 0.0, 0.9)).lr_lambdas[0](25_000) == factor(25_000)


def test_half_a_cosine_falls_to_the_floor(optimizer):
    found = factors(cosine(optimizer, total_steps=10, warmup=0.2, start=0.5, floor=0.2), 12)
    assert found[:3] == pytest.approx([0.75, 1.0, 1.0])
    assert found[6] == pytest.approx(0.6)  # in the middle
    assert found[4] == pytest.approx(0.2 + 0.8 * 0.8535533905932737)  # (1 + cos(pi / 4)) / 2
    assert found[10:] == pytest.approx([0.2, 0.2])
    assert factors(cosine(optimizer, total_steps=4, warmup=0.0), 5) == pytest.approx(
        [1.0, 0.85355339, 0.5, 0.14644661, 0.0]
    )


def test_a_cosine_of_other_than_shares_is_refused(optimizer):
    with pytest.raises(ValueError, match=r"warmup=500 is a share of the steps or of the peak rate; give a number in 0"):
        cosine(optimizer, 1000, warmup=500)
