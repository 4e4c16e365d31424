"""Which positions of a padded batch are real, statistics over those only, and random spans to hide.

B batch, T positions (frames, samples or channels).
"""

import torch
from torch import Tensor


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a position lies inside its row: `lengths` (B,) -> (B, size) bool, on the device of `lengths`."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def standardize(x: Tensor, valid: Tensor, eps: float = 1e-5) -> Tensor:
    """Bring `x` (..., T) to zero mean and unit variance over the valid part of its last axis; the rest becomes 0.

    valid: bool, broadcasts against x, at least one True per row. The variance is the biased one, as in all norms."""
    count = valid.sum(-1, keepdim=True)
    mean = x.masked_fill(~valid, 0).sum(-1, keepdim=True) / count
    centred = (x - mean).masked_fill(~valid, 0)
    return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + eps)


def span_mask(
    lengths: Tensor,
    mask_prob: float = 0.8,
    span: int = 10,
    min_spans: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Hide spans at random places of each row, equally many positions in every row (HuBERT, arXiv:2106.07447, 2.3).

    A row of T valid positions gets `max(min_spans, floor(mask_prob * T / span + u))` different span starts, u uniform
    in [0, 1) and the same for all rows; spans may overlap, so `mask_prob` bounds the hidden share from above (0.8 hides
    about 0.57). Then random positions are shown again until each row hides as many as the row that hides least. Rows
    without valid positions hide none and do not count.

    Args:
        lengths: Valid positions per row (B,), int64, on the CPU, where everything is drawn.
        mask_prob: Share that would be hidden if spans never overlapped, in (0, 1].
        span: Positions per span.
        min_spans: Spans that even a short row gets.
        generator: CPU generator; torch's default one if None.

    Returns: (B, max(lengths)) bool on the CPU, True = hidden, never True on padding.
    """
    if not 0 < mask_prob <= 1:
        raise ValueError(f"mask_prob={mask_prob} is not a share; give a number above 0 and at most 1")
    if span < 1 or min_spans < 1:
        raise ValueError(f"span={span} and min_spans={min_spans} must both be at least 1")
    rows, size = len(lengths), int(lengths.max())
    spans = (mask_prob * lengths / span + torch.rand(1, generator=generator)).floor().long().clamp(min=min_spans)
    # Starts come from [0, T - span); a row too short for that draws from [0, spans], and spans are cut at its end.
    choices = torch.where(lengths - span > spans, lengths - span, torch.minimum(spans + 1, lengths))
    spans = torch.minimum(spans, choices)  # (B,)

    starts = _choose(valid_mask(choices, size), spans, generator)  # (B, T), True where a span starts
    begun = torch.nn.functional.pad(starts.cumsum(1), (span, 0))  # (B, span + T), spans begun so far
    hidden = (begun[:, span:] > begun[:, :size]) & valid_mask(lengths, size)  # one began within the last `span`
    counts = hidden.sum(1)
    fewest = counts[lengths > 0].min() if (lengths > 0).any() else torch.tensor(0)
    return _choose(hidden, fewest.expand(rows), generator)


def _choose(candidates: Tensor, counts: Tensor, generator: torch.Generator | None) -> Tensor:
    """Keep `counts` (B,) random ones of each row's True `candidates` (B, T); fewer where there are fewer."""
    order = torch.rand(candidates.shape, generator=generator).masked_fill(~candidates, 2.0).argsort(1)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return candidates & (rank < counts[:, None])
