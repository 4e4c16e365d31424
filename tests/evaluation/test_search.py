"""Nearest neighbours among the embeddings of a sidecar."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmflow.data.writer import TarShard
from mmflow.evaluation import search
from mmflow.evaluation.search import ABSENT, FaissIndex, Index

META = {"weights": "0123456789abcdef"}


def write(folder: Path, shards: dict[str, list[Any]], meta: Any = META, field: str = "clip") -> Path:
    """A sidecar with keys k0, k1, ... in each shard."""
    for name, rows in shards.items():
        with TarShard(folder / name, meta) as tar:
            for number, row in enumerate(rows):
                tar.write({"__key__": f"k{number}", f"{field}.npy": np.asarray(row)})
    return folder


def random_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1).half().numpy()


def brute_force(queries: Tensor, rows: Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """By sorting; Python keeps equal ones in their order."""
    scores = (queries.double() @ rows.double().T).float().tolist()
    order = [sorted(range(len(row)), key=lambda number: -row[number])[:k] for row in scores]
    return [[row[i] for i in chosen] for row, chosen in zip(scores, order, strict=True)], order


def test_keys_and_scores_of_a_small_sidecar(tmp_path):
    none = np.zeros(0, np.uint16)  # of a broken sample
    shards = {
        "toy/train-000000.tar": [[0.0, 1.0], none, [1.0, 0.0]],
        "toy/train-000001.tar": [none],
        "toy/validation-000000.tar": [[0.0, 1.0], [-1.0, 0.0]],
    }
    write(tmp_path, {name: [np.asarray(row, np.float16) for row in rows] for name, rows in shards.items()})
    index = Index.open(tmp_path, "clip", weights=META["weights"])
    assert (len(index), index.dim, index.meta) == (4, 2, META)
    found = index.search(torch.tensor([[0.5, 0.25], [0.0, 2.0]]), 3)
    assert found.scores.tolist() == [[0.5, 0.25, 0.25], [2.0, 2.0, 0.0]]
    assert found.numbers.tolist() == [[1, 0, 2], [0, 2, 1]]
    names = [index.name(number) for number in range(4)]
    assert names[:2] == [("toy/train-000000.tar", "k0"), ("toy/train-000000.tar", "k2")]
    assert names[2:] == [("toy/validation-000000.tar", "k0"), ("toy/validation-000000.tar", "k1")]
    assert index.embeddings(torch.tensor([[3, 1]])).tolist() == [[[-1.0, 0.0], [1.0, 0.0]]]
    validation = Index.open(tmp_path, "clip", "**/validation-*.tar")
    assert [validation.name(number) for number in range(2)] == names[2:]
    alone = Index.open(tmp_path / "toy" / "validation-000000.tar", "clip")
    assert alone.name(1) == ("validation-000000.tar", "k1")


def test_more_neighbours_than_there_are(tmp_path):
    index = Index.open(write(tmp_path, {"a.tar": [np.ones(2, np.float32)]}), "clip")
    found = index.search(torch.tensor([[1.0, 2.0]]), 3)
    assert found.numbers.tolist() == [[0, ABSENT, ABSENT]]
    assert found.scores.tolist() == [[3.0, -torch.inf, -torch.inf]]


@pytest.mark.parametrize("coarse", [False, True])
def test_agrees_with_sorting_over_chunks_of_shards_and_queries(tmp_path, monkeypatch, coarse):
    monkeypatch.setattr(search, "ROWS", 16)
    monkeypatch.setattr(search, "QUERIES", 7)
    rows, queries = random_rows(150, 8), torch.from_numpy(random_rows(20, 8, seed=1))
    if coarse:  # of few different values, so that many scores are equal, some of them 0 and -0
        rows, queries = np.rint(2 * rows), (2 * queries).round()
    index = Index.open(write(tmp_path, {"a.tar": rows[:70], "b.tar": rows[70:71], "c.tar": rows[71:]}), "clip")
    found = index.search(queries, 9)
    scores, numbers = brute_force(queries, torch.from_numpy(rows), 9)
    assert found.numbers.tolist() == numbers
    assert found.scores.tolist() == scores


def test_equal_embeddings_tie_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "ROWS", 10)
    rows = random_rows(1, 511).repeat(37, 0)
    index = Index.open(write(tmp_path, {"a.tar": rows}), "clip")
    assert index.search(torch.from_numpy(random_rows(1, 511, seed=2)), 37).numbers[0].tolist() == list(range(37))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_faiss_finds_the_same(tmp_path, kind):
    pytest.importorskip("faiss")
    rows, queries = random_rows(500, 16), torch.from_numpy(random_rows(30, 16, seed=1))
    index = Index.open(write(tmp_path, {"a.tar": rows[:200], "b.tar": rows[200:]}), "clip")
    exact, found = index.search(queries, 5), FaissIndex(index, kind).search(queries, 5)
    torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=0)
    assert found.numbers.tolist() == exact.numbers.tolist()


def test_faiss_with_fewer_than_k_and_without_it(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    index = Index.open(write(tmp_path, {"a.tar": random_rows(2, 8)}), "clip")
    queries = torch.from_numpy(random_rows(3, 8, seed=1))
    exact, found = index.search(queries, 4), FaissIndex(index, "flat").search(queries, 4)
    assert found.numbers.tolist() == exact.numbers.tolist()
    assert found.scores.tolist() == exact.scores.tolist()
    with pytest.raises(ValueError, match="kind='ivf' is unknown; take flat or hnsw"):
        FaissIndex(index, "ivf")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="pip install faiss-cpu, or search with Index, which is exact"):
        FaissIndex(index)


def test_queries_that_do_not_fit_are_refused(tmp_path):
    index = Index.open(write(tmp_path, {"a.tar": random_rows(2, 8)}), "clip")
    with pytest.raises(ValueError, match=r"queries \(1, 4\) are compared with embeddings of width 8"):
        index.search(torch.ones(1, 4), 1)
    with pytest.raises(ValueError, match="k=0 neighbours must be at least 1"):
        index.search(torch.ones(1, 8), 0)
    with pytest.raises(ValueError, match="1 of 1 embeddings of queries are not finite"):
        index.search(torch.full((1, 8), torch.nan), 1)
    with pytest.raises(IndexError, match=r"numbers 0\.\.2 of 2 embeddings"):
        index.embeddings(torch.tensor([0, 2]))
    with pytest.raises(IndexError, match="number -1 of 2 embeddings"):
        index.name(ABSENT)


def test_the_index_of_another_model_is_refused(tmp_path):
    write(tmp_path, {"a.tar": random_rows(2, 8)})
    with pytest.raises(ValueError, match=r"embeddings of the weights 0123456789abcdef, but the queries are of ffff"):
        Index.open(tmp_path, "clip", weights="ffff")
    write(tmp_path, {"b.tar": random_rows(2, 8)}, {"weights": "ffff"})
    with pytest.raises(ValueError, match=r"b\.tar was made by .*ffff.*, but .*a\.tar by .*; search one sidecar"):
        Index.open(tmp_path, "clip")


def test_what_is_no_sidecar_of_embeddings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no shards \*\*/\*\.tar; give the folder that a predict stage wrote"):
        Index.open(tmp_path, "clip")
    write(tmp_path, {"a.tar": random_rows(2, 8)}, field="units")
    with pytest.raises(ValueError, match=r"holds no embeddings clip\.npy, only \['units\.npy'\]; name another field"):
        Index.open(tmp_path, "clip")
    with pytest.raises(ValueError, match=r"c\.tar: clip\.npy has int64 of shape \(3,\); embeddings are float16 or"):
        Index.open(write(tmp_path / "c", {"c.tar": [[1, 2, 3]]}), "clip")
    two_widths = [np.ones(4, np.float16), np.ones(8, np.float16)]
    with pytest.raises(ValueError, match=r"clip\.npy of k1 has float16 of shape \(8,\), others float16 of \(4,\)"):
        Index.open(write(tmp_path / "d", {"d.tar": two_widths}), "clip")
    two_types = [np.ones(4, np.float16), np.ones(2, np.float32)]  # of as many bytes
    with pytest.raises(ValueError, match=r"clip\.npy of k1 has float32 of shape \(2,\), others float16 of \(4,\)"):
        Index.open(write(tmp_path / "e", {"e.tar": two_types}), "clip")


def test_an_embedding_that_is_not_finite_is_named(tmp_path):
    rows = random_rows(3, 8)
    rows[1, 2] = np.nan
    index = Index.open(write(tmp_path, {"x/a.tar": random_rows(2, 8), "x/b.tar": rows}), "clip")
    with pytest.raises(ValueError, match=r"the embedding of k1 in x/b\.tar is not finite; the model .* is broken"):
        index.search(torch.ones(1, 8), 1)
