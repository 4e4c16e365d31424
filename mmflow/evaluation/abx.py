"""ABX: of two phones A and B, is a third one X, which is what A is, nearer to A? Without any clustering or training.

Phone discrimination as in Schatz et al. 2013 ("Evaluating speech features with the Minimal-Pair ABX task") and the Zero
Resource challenges, with triples sampled instead of listed and without a condition on the phones beside A, B and X (the
"any context" of Hallap et al. 2022, arXiv:2210.15775): the same-context variant needs hours of speech, for ten minutes
hold minimal pairs of one speaker for 6 % of the pairs of English phones.

Letters: N frames of all utterances, D width, S segments, P pairs of segments, L and M frames of the longer segments.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2048  # pairs that are warped together


def sample_triples(
    phones: Sequence[str], speakers: Sequence[Hashable], number: int, seed: int, across: bool = False
) -> Tensor:
    """Segments A, B, X, where A and X are of one phone and B is of another; A and B are of one speaker.

    Every ordered pair of phones of which there is a triple gets equally many (one more for some), and within a pair
    every speaker is equally likely. So an error over them is a mean over pairs of phones.

    Args:
        phones: Of each of S segments.
        speakers: Of each of S segments.
        number: Triples to draw.
        seed: Of the draw.
        across: Take X of another speaker than A and B instead of the same one.

    Returns:
        (number, 3) int64 indices of segments A, B, X; (0, 3) where no triple can be made.
    """
    spoken: dict[Hashable, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    speakers_of: dict[str, list[Hashable]] = defaultdict(list)
    for segment, (phone, speaker) in enumerate(zip(phones, speakers, strict=True)):
        if phone not in spoken[speaker]:
            speakers_of[phone].append(speaker)
        spoken[speaker][phone].append(segment)
    cells: dict[tuple[str, str], list[Hashable]] = defaultdict(list)  # ordered pair of phones -> speakers of A and B
    for speaker, segments in spoken.items():
        for a, b in itertools.permutations(segments, 2):
            if len(speakers_of[a]) > 1 if across else len(segments[a]) > 1:
                cells[a, b].append(speaker)
    draw = torch.Generator().manual_seed(seed)
    chances = torch.rand(number, 5, dtype=torch.float64, generator=draw).tolist()
    pairs = sorted(cells)
    triples = []
    # Each phone pair in turn, in a random order, so that fewer triples than pairs are a fair choice of pairs.
    order = torch.randperm(len(pairs), generator=draw).tolist()
    for turn, chance in zip(itertools.cycle(order), chances, strict=False):
        a, b = pairs[turn]
        speaker = _pick(cells[a, b], chance[0])
        first, second = _pick(spoken[speaker][a], chance[1]), _pick(spoken[speaker][b], chance[2])
        other = _pick([s for s in speakers_of[a] if s != speaker], chance[3]) if across else speaker
        third = _pick([segment for segment in spoken[other][a] if segment != first], chance[4])
        triples.append((first, second, third))
    return torch.tensor(triples, dtype=torch.int64).view(-1, 3)


def _pick(among: Sequence[Any], chance: float) -> Any:
    return among[int(chance * len(among))]


def abx_error(frames: Tensor, starts: Tensor, lengths: Tensor, triples: Tensor) -> float:
    """Share of `triples` in which X is nearer to B than to A; equally near counts half. Chance is 0.5.

    Args:
        frames: (N, D), any floating type.
        starts: (S,) index of the first frame of each segment.
        lengths: (S,) frames of each segment, 1 or more.
        triples: (n, 3) indices of segments, n at least 1, see `sample_triples`.
    """
    a, b, x = triples.unbind(1)
    pairs = torch.cat([torch.stack([a, x], 1), torch.stack([b, x], 1)])
    to_a, to_b = segment_distances(frames, starts, lengths, pairs).chunk(2)
    return float(((to_a > to_b).double() + (to_a == to_b).double() / 2).mean())


def segment_distances(frames: Tensor, starts: Tensor, lengths: Tensor, pairs: Tensor) -> Tensor:
    """Of each pair (P, 2) of segments the mean angle of their frames along the best time warp, in units of pi: (P,).

    `frames`, `starts` and `lengths` as in `abx_error`."""
    directions = F.normalize(frames.float(), dim=1)
    rows, columns = lengths[pairs].unbind(1)
    result = torch.empty(len(pairs), device=frames.device)
    for part in (rows * (int(lengths.max()) + 1) + columns).argsort().split(CHUNK):  # similar shapes, little padding
        first, second = pairs[part].unbind(1)
        x, y = (_padded(directions, starts[side], lengths[side]) for side in (first, second))  # (P, L, D), (P, M, D)
        angles = (x @ y.transpose(1, 2)).clamp(-1, 1).acos() / math.pi  # (P, L, M)
        result[part] = warped_distance(angles, rows[part], columns[part])
    return result


def _padded(frames: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Segments side by side, (P, L, D); what stands behind the end of one means nothing."""
    reach = torch.arange(int(lengths.max()), device=frames.device)
    return frames[(starts[:, None] + reach).clamp(max=len(frames) - 1)]


def warped_distance(distances: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Dynamic time warping: the mean distance along the path of least summed distance through each matrix.

    A path goes from the first frames of both segments to the last ones in steps of (1, 1), (1, 0) or (0, 1).

    Args:
        distances: (P, L, M), not negative.
        rows: (P,) of each matrix, at most L; what lies outside is not looked at.
        columns: (P,) of each matrix, at most M.

    Returns:
        (P,)
    """
    size, height, width = distances.shape
    cells = distances.permute(1, 2, 0).contiguous()  # (L, M, P)
    sums = cells.new_full((height + 1, width + 1, size), torch.inf)  # the least so far, with a border before
    steps = torch.zeros_like(sums)  # cells on the way there
    sums[0, 0] = 0
    for i, j in itertools.product(range(height), range(width)):
        before = [(i, j), (i, j + 1), (i + 1, j)]
        least, origin = torch.stack([sums[cell] for cell in before]).min(0)
        sums[i + 1, j + 1] = least + cells[i, j]
        steps[i + 1, j + 1] = 1 + torch.stack([steps[cell] for cell in before]).gather(0, origin[None])[0]
    each = torch.arange(size, device=distances.device)
    return sums[rows, columns, each] / steps[rows, columns, each]
