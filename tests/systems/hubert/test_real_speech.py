"""The shipped pipeline on recordings of people, from the original layout to transcripts."""

import json
from pathlib import Path

import pytest

from mmflow.cli import main
from mmflow.data.make import make
from mmflow.data.spec import DataSpec

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_shipped_pipeline_goes_from_librispeech_to_transcripts(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    spec, shards, work = "data_specs/librispeech.yaml", tmp_path / "shards", tmp_path / "work"
    assert make(DataSpec.read(spec), real_data / "librispeech", shards) == {"train": 30, "validation": 10, "test": 10}
    short = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--stages.ctc.model.freeze_steps", "2"]
    data = ["--data.spec", spec, "--data.root", str(shards)]
    assert main(["fit", "--config", "pipelines/hubert.yaml", "--workdir", str(work), *data, *short]) == 0

    for stage in ("units_1", "units_2"):  # one array per utterance of every split, in the original's order
        assert sorted(path.name for path in (work / stage / "shards" / "librispeech").glob("*.tar")) == [
            "test-000000.tar",
            "train-000000.tar",
            "validation-000000.tar",
        ]
    rows = json.loads((work / "quality" / "quality.json").read_text())["rows"]
    assert [(row["round"], row["layer"]) for row in rows] == [
        ("mfcc", None),
        *(("round_1", layer) for layer in range(5)),
        *(("round_2", layer) for layer in range(5)),
    ]
    assert all(row["unit_entropy"] > 3.5 for row in rows), "100 clusters in even use have 4.6 nats"
    transcripts = json.loads((work / "test" / "transcripts.json").read_text())
    assert len(transcripts) == 10
    assert transcripts[0]["text"].isupper()
