"""How well clusters of speech frames agree with phones: purities and phone-normalised mutual information.

The measures of HuBERT (arXiv:2106.07447, section IV-E) on the joint counts of aligned phones and units.
Letters: N frames, T frames of one utterance, P phones, K clusters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from mmflow.data.decode import SAMPLE_RATE

HOP, WINDOW = 320, 400  # samples: frame t is [320 t, 320 t + 400)
UNKNOWN = -1  # a frame under no phone


def joint_counts(phones: Tensor, units: Tensor, num_phones: int, num_clusters: int) -> Tensor:
    """Frames with each pair of phone and unit, (P, K) int64; frames whose phone is UNKNOWN are left out.

    phones, units: (N,) integers below P and K."""
    known = phones != UNKNOWN
    pairs = phones[known].long() * num_clusters + units[known].long()
    return torch.bincount(pairs, minlength=num_phones * num_clusters).view(num_phones, num_clusters)


def phone_purity(joint: Tensor) -> float:
    """Accuracy per frame if each cluster were renamed to its most frequent phone. Grows with K, 1 at K = N."""
    return float(joint.amax(0).sum() / joint.sum())


def cluster_purity(joint: Tensor) -> float:
    """Accuracy per frame if each phone were renamed to its most frequent cluster. Falls as K grows."""
    return float(joint.amax(1).sum() / joint.sum())


def entropy(counts: Tensor) -> float:
    """Of the distribution that `counts` (n,) describes, in nats."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum())


def pnmi(joint: Tensor) -> float:
    """I(phone; unit) / H(phone), in [0, 1]: the share of what there is to know about the phone that the unit tells.

    Not a number where all frames have one phone, for then there is nothing to know."""
    p = joint.double() / joint.sum()
    independent = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)  # (P, K)
    information = torch.where(p > 0, p * (p / independent).log(), 0).sum()
    return float(information / torch.special.entr(p.sum(1)).sum())


class ClusterQuality(Metric):
    """Joint counts of phones and units over all ranks, and what follows from them.

    `compute` gives `pnmi`, `phone_purity` and `cluster_purity` (see the functions of these names), `unit_entropy` in
    nats, `used_clusters`, and `segment_frames`, the mean length of a run of equal units.

    Args:
        num_phones: P, the size of the inventory.
        num_clusters: K.
    """

    joint: Tensor  # (P, K) int64
    unit_counts: Tensor  # (K,) int64
    runs: Tensor  # () int64

    def __init__(self, num_phones: int, num_clusters: int) -> None:
        super().__init__()
        self.num_phones, self.num_clusters = num_phones, num_clusters
        self.add_state("joint", torch.zeros(num_phones, num_clusters, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("unit_counts", torch.zeros(num_clusters, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("runs", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, phones: Tensor, units: Tensor) -> None:
        """Count one utterance: phones (T,), UNKNOWN where there is none, and units (T,), both integers."""
        if phones.shape != units.shape or phones.ndim != 1:
            raise ValueError(
                f"phones {tuple(phones.shape)} and units {tuple(units.shape)} are not one number per frame each; "
                f"give one utterance at a time, both at 50 Hz"
            )
        for name, given, size in (("phone", phones, self.num_phones), ("unit", units, self.num_clusters)):
            if len(given) and int(given.max()) >= size:
                raise ValueError(
                    f"{name} {int(given.max())} is not below {size}; were they made with another inventory?"
                )
        units = units.long()
        self.joint += joint_counts(phones, units, self.num_phones, self.num_clusters)
        self.unit_counts += torch.bincount(units, minlength=self.num_clusters)
        self.runs += len(units.unique_consecutive())

    def compute(self) -> dict[str, float]:
        """The measures by name; those that need phones only if a frame under a phone was counted."""
        of_units = {
            "unit_entropy": entropy(self.unit_counts),
            "used_clusters": int((self.unit_counts > 0).sum()),
            "segment_frames": float(self.unit_counts.sum() / self.runs),
        }
        if not self.joint.any():
            return of_units
        measures = {"pnmi": pnmi, "phone_purity": phone_purity, "cluster_purity": cluster_purity}
        return {name: measure(self.joint) for name, measure in measures.items()} | of_units


def phone_spans(phones: Sequence[Sequence], num_frames: int) -> list[tuple[int, int]]:
    """First frame and the one after the last of each [start in s, end in s, name], of frames by their centres.

    Frames are those of 50 Hz; a phone between two centres has none, and two equal numbers."""
    centres = (torch.arange(num_frames, dtype=torch.float64) * HOP + WINDOW / 2) / SAMPLE_RATE  # s
    times = torch.tensor([[start_s, end_s] for start_s, end_s, _ in phones], dtype=torch.float64).view(-1, 2)
    return [(first, stop) for first, stop in torch.searchsorted(centres, times).tolist()]


def phone_frames(phones: Sequence[Sequence], num_frames: int, inventory: Sequence[str]) -> Tensor:
    """The phone at the centre of each 50 Hz frame, as an index into `inventory`: (T,) int64, UNKNOWN where none is.

    Args:
        phones: [start in s, end in s, name] in order of time, each covering [start, end).
        num_frames: T.
        inventory: Names of all phones.

    Raises:
        ValueError: a phone is not in the inventory.
    """
    index = {name: number for number, name in enumerate(inventory)}
    result = torch.full((num_frames,), UNKNOWN)
    for (start_s, _, name), (first, stop) in zip(phones, phone_spans(phones, num_frames), strict=True):
        if name not in index:
            raise ValueError(
                f"phone {name!r} at {start_s} s is not among the {len(index)} of the inventory ({', '.join(index)}); "
                f"take the inventory from all splits"
            )
        result[first:stop] = index[name]
    return result
