"""Every benchmark runs, with sizes at which its figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NEEDS: dict[str, list[str]] = {
    "kmeans": ["faiss", "sklearn"],
    "hubert_step": ["transformers"],
    "loader": [],
    "loading": [],
    "relabel": [],
    "vision_accuracy": ["timm"],
    "vision_step": ["timm", "open_clip", "transformers"],
}


def test_every_benchmark_is_tested():
    scripts = {path.stem for path in FOLDER.glob("*.py") if "def main()" in path.read_text()}
    assert scripts == set(NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(NEEDS))
def test_a_quick_run_reports_the_ratio_of_each_contestant(script):
    for package in NEEDS[script]:
        pytest.importorskip(package, reason="needs the peers: pip install -c constraints.txt -e '.[bench]'")
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"benchmark"')]
    assert reports
    for report in reports:
        ours = report["rows"][0]
        assert all(row[f"{ours['what']}_is_faster"] > 0 for row in report["rows"])
        assert len(report["rows"]) >= 2
