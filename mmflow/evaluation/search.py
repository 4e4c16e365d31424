"""Nearest neighbours among the embeddings of a sidecar, by inner product: exact, or with faiss where that is installed.

    index = Index.open("runs/embeddings/images/shards", "clip")
    found = index.search(queries, 5)
    index.name(found.numbers[0, 0])  # shard and key of the nearest one

Letters: N embeddings, Q queries, E width, k neighbours.
"""

import io
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmflow.data.index import ShardIndex, open_shards
from mmflow.evaluation.retrieval import require_finite

ROWS = 8192  # embeddings that are compared at once, with
QUERIES = 512  # queries: 100 MB
ABSENT = -1  # number of a neighbour that there is not, where k is more than N


class Neighbours(NamedTuple):
    """The nearest embeddings, nearest first; of equal ones that of the smaller number.

    Attributes:
        scores: (Q, k) float32; minus infinity where there are fewer than k embeddings.
        numbers: (Q, k) int64, as `Index.name` and `Index.embeddings` take them; ABSENT where there are fewer.
    """

    scores: Tensor
    numbers: Tensor


class Index:
    """Embeddings where they stand, in the tars of a sidecar; nothing but their places is kept in memory.

    They are numbered in the order of the names of their shards, and in a shard as they stand. Samples without an
    embedding (they were broken) have no number.

    Attributes:
        meta: how the sidecar was made, as `SidecarWriter` stored it.
        dim: width E.
    """

    def __init__(self, folder: Path, field: str, shards: list[ShardIndex]) -> None:
        self.folder, self.field, self.shards = folder, field, shards
        self.meta: dict[str, Any] = shards[0].meta
        self.dim, self.dtype, self._header = self._kind()
        self._places = [self._places_of(shard) for shard in shards]  # per shard rows (n,) and offsets (n,)
        self._starts = [0, *accumulate(len(rows) for rows, _ in self._places)]

    @classmethod
    def open(cls, path: str | Path, field: str, shards: str = "**/*.tar", weights: str | None = None) -> "Index":
        """The index of a sidecar.

        Args:
            path: the folder that a predict stage wrote, or one tar of it.
            field: what the stage called the embeddings.
            shards: which of its tars, such as "**/train-*.tar".
            weights: fingerprint of the model that the queries come from.

        Raises:
            ValueError: there are no such tars, they were made in different ways or by another model, or they hold no
                embeddings of one width.
        """
        path = Path(path)
        tars = [path] if path.is_file() else sorted(path.glob(shards))
        if not tars:
            raise ValueError(
                f"{path} has no shards {shards}; give the folder that a predict stage wrote its sidecar to"
            )
        opened = open_shards([str(tar) for tar in tars])
        for shard in opened:
            if shard.meta != opened[0].meta:
                raise ValueError(
                    f"{shard.path} was made by {shard.meta}, but {opened[0].path} by {opened[0].meta}; search one "
                    f"sidecar at a time"
                )
        made_by = opened[0].meta.get("weights")
        if weights is not None and made_by != weights:
            raise ValueError(
                f"{path} holds embeddings of the weights {made_by}, but the queries are of {weights}; embed both with "
                f"one model"
            )
        return cls(path, field, opened)

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, number: int) -> tuple[str, str]:
        """(path of the shard below the index's folder, key) of one embedding."""
        if not 0 <= number < len(self):
            raise IndexError(f"number {number} of {len(self)} embeddings")
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        shard, row = self.shards[place], self._places[place][0][number - self._starts[place]]
        path = Path(shard.path)
        name = path.name if path == self.folder else path.relative_to(self.folder).as_posix()
        return name, shard.key(int(row))

    def embeddings(self, numbers: Tensor) -> Tensor:
        """(..., E) in the type of the sidecar, for numbers (...)."""
        flat = numbers.flatten().cpu().numpy()
        if len(flat) and not (flat.min() >= 0 and flat.max() < len(self)):
            raise IndexError(f"numbers {flat.min()}..{flat.max()} of {len(self)} embeddings")
        found = np.empty((len(flat), self.dim), self.dtype)
        places = np.searchsorted(self._starts, flat, side="right") - 1
        for place in np.unique(places):
            chosen = places == place
            found[chosen] = self._read(int(place), flat[chosen] - self._starts[place])
        return torch.from_numpy(found).view(*numbers.shape, self.dim)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """The number of the first, and embeddings (n, E) in the type of the sidecar, in order, n at most ROWS.

        Raises ValueError where one is not finite."""
        for place, start in enumerate(self._starts[:-1]):
            count = len(self._places[place][0])
            for first in range(0, count, ROWS):
                found = torch.from_numpy(self._read(place, np.arange(first, min(first + ROWS, count))))
                bad = (~found.isfinite().all(1)).nonzero()[:, 0]
                if len(bad):
                    name, key = self.name(start + first + int(bad[0]))
                    raise ValueError(
                        f"the embedding of {key} in {name} is not finite; the model that made {self.folder} is broken: "
                        f"make it again with another checkpoint"
                    )
                yield start + first, found

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """The k embeddings with the highest inner products with each query (Q, E); memory is linear in Q and N.

        Products are summed in float64 and rounded to float32. For float16 numbers such as the sidecar's the sums are
        exact, so that equal embeddings tie wherever they stand. Runs on the device of the queries.

        Raises:
            ValueError: queries of another width or that are not finite, a k below 1.
        """
        self._check(queries, k)
        scores = torch.full((len(queries), k), -torch.inf, device=queries.device)
        numbers = torch.full((len(queries), k), ABSENT, device=queries.device)
        for start, rows in self.chunks():
            found = rows.to(queries.device).double()
            own = torch.arange(start, start + len(rows), device=queries.device)
            for first in range(0, len(queries), QUERIES):
                part = slice(first, first + QUERIES)
                all_scores = torch.cat([scores[part], (queries[part].double() @ found.T).float()], 1)
                all_numbers = torch.cat([numbers[part], own.expand(len(all_scores), -1)], 1)
                scores[part], numbers[part] = _first(all_scores, all_numbers, k)
        return Neighbours(scores, numbers)

    def _check(self, queries: Tensor, k: int) -> None:
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(
                f"queries {tuple(queries.shape)} are compared with embeddings of width {self.dim} in {self.folder}; "
                f"embed both with one model"
            )
        if k < 1:
            raise ValueError(f"k={k} neighbours must be at least 1")
        require_finite(queries, "queries")

    # ---- the tars

    def _kind(self) -> tuple[int, np.dtype, bytes]:
        """Width and type of the embeddings, and the bytes before each one's numbers, from the first that there is."""
        held: set[str] = set()
        for shard in self.shards:
            held |= set(shard.counts)
            if self._member not in shard.counts:
                continue
            for offset, size in shard.places(self._member)[1].tolist():
                data = shard.read_at(self._member, offset, size)
                array = np.load(io.BytesIO(data), allow_pickle=False)
                if array.size == 0:
                    continue
                if array.ndim != 1 or array.dtype not in (np.float16, np.float32):
                    raise ValueError(
                        f"{shard.path}: {self._member} has {array.dtype} of shape {array.shape}; embeddings are "
                        f"float16 or float32, one row each"
                    )
                return len(array), array.dtype, data[: size - array.nbytes]
        raise ValueError(f"{self.folder} holds no embeddings {self._member}, only {sorted(held)}; name another field")

    @property
    def _member(self) -> str:
        return f"{self.field}.npy"

    def _places_of(self, shard: ShardIndex) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the samples with an embedding, and the bytes at which its numbers begin."""
        if self._member not in shard.counts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        rows, places = shard.places(self._member)
        data, header = np.memmap(shard.path, np.uint8, "r"), len(self._header)
        offsets, sizes = places[:, 0], places[:, 1]
        whole = sizes == header + self.dim * self.dtype.itemsize
        expected = np.frombuffer(self._header, np.uint8)
        whole[whole] = (data[offsets[whole, None] + np.arange(header)] == expected).all(1)
        for row in np.flatnonzero(~whole):
            array = np.load(io.BytesIO(shard.read_at(self._member, *places[row].tolist())), allow_pickle=False)
            if array.size:
                raise ValueError(
                    f"{shard.path}: {self._member} of {shard.key(int(rows[row]))} has {array.dtype} of shape "
                    f"{array.shape}, others {self.dtype} of ({self.dim},); make the sidecar again"
                )
        return rows[whole], offsets[whole] + header

    def _read(self, place: int, rows: np.ndarray) -> np.ndarray:
        """The embeddings at some places among those of a shard."""
        data, size = np.asarray(np.memmap(self.shards[place].path, np.uint8, "r")), self.dim * self.dtype.itemsize
        found = np.empty((len(rows), size), np.uint8)
        for i, offset in enumerate(self._places[place][1][rows].tolist()):
            found[i] = data[offset : offset + size]
        return found.view(self.dtype)


def _first(scores: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of scores (Q, M), of equal ones those that stand first, with their numbers.

    Scores become whole numbers of the same order, behind which the places make all of them different."""
    bits = (scores + 0.0).view(torch.int32)  # no -0.0
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
    places = torch.arange(scores.shape[1], device=scores.device)
    chosen = ((ordered << 32) - places).topk(k, dim=1).indices
    return scores.gather(1, chosen), numbers.gather(1, chosen)


class FaissIndex:
    """The embeddings of an index in memory, as faiss searches them; for many queries among many.

    Takes 4 N E bytes, and with "hnsw" 8 N `links` more. "flat" compares with all; "hnsw" walks a graph (Malkov and
    Yashunin 2016, arXiv:1603.09320) and misses some neighbours. What is found is sorted by its exact scores.

    Args:
        index: whose embeddings are searched.
        kind: of faiss's index.
        links: of each embedding in the graph.
        effort: candidates that are kept while walking; more find more.

    Raises:
        ValueError: faiss is not installed.
    """

    def __init__(
        self, index: Index, kind: Literal["flat", "hnsw"] = "hnsw", links: int = 32, effort: int = 128
    ) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ValueError(
                "FaissIndex needs the package faiss; pip install faiss-cpu, or search with Index, which is exact"
            ) from error
        if kind not in ("flat", "hnsw"):
            raise ValueError(f"kind={kind!r} is unknown; take flat or hnsw")
        self.index = index
        self._faiss: Any = faiss.IndexFlatIP(index.dim)
        if kind == "hnsw":
            self._faiss = faiss.IndexHNSWFlat(index.dim, links, faiss.METRIC_INNER_PRODUCT)
            self._faiss.hnsw.efConstruction = self._faiss.hnsw.efSearch = effort
        for _, rows in index.chunks():
            self._faiss.add(rows.float().numpy())

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """As `Index.search`."""
        self.index._check(queries, k)
        _, found = self._faiss.search(queries.float().cpu().numpy(), k)
        numbers = torch.from_numpy(found).sort(1).values  # ABSENT ones first
        rows = self.index.embeddings(numbers.clamp(min=0)).double()  # (Q, k, E)
        scores = (rows @ queries.cpu().double()[..., None])[..., 0].float()
        scores[numbers == ABSENT] = -torch.inf
        return Neighbours(*(part.to(queries.device) for part in _first(scores, numbers, k)))
