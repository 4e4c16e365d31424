"""The floors of the house: imports go down only, and what is heavy is imported late."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"atomic", "processes", "torchaudio_cpu", "torchvision_cpu"},
    {"signals"},
    {"nn", "data"},
    {"generation", "training", "evaluation", "world"},
    {"systems"},
    {"pipeline"},
    {"stage"},
    {"cli"},
]
FILES = sorted((ROOT / "mmflow").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    parts = path.relative_to(ROOT / "mmflow").with_suffix("").parts
    if parts == ("__init__",):
        return
    mine = parts[0]
    used = {name.split(".")[1] for name in imported(path) if name.startswith("mmflow.")}
    late = {other for other in used if other != mine and floor(other) >= floor(mine)}
    assert not late, f"mmflow.{mine} imports {late}, which do not lie below it"


@pytest.mark.parametrize("path", sorted((ROOT / "mmflow" / "systems").glob("*/model.py")), ids=lambda p: p.parent.name)
def test_models_know_no_data_no_trainer_and_other_systems_by_their_models_only(path):
    allowed = ("mmflow.nn", "mmflow.systems")
    names = imported(path)
    assert not any(name.split(".")[0] in ("lightning", "torchmetrics") for name in names)
    for name in names:
        if name.startswith("mmflow"):
            assert name.startswith(allowed)
            assert not name.startswith("mmflow.systems") or name.split(".")[3] == "model"


def test_one_module_imports_torchaudio():
    found = {path.name for path in FILES if any(name.split(".")[0] == "torchaudio" for name in imported(path))}
    assert found <= {"torchaudio_cpu.py"}


@pytest.mark.parametrize("module", ["mmflow.cli", "mmflow.pipeline", "mmflow.signals", "mmflow.data.spec"])
def test_what_answers_at_once_does_not_load_torch(module):
    program = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "lightning", "webdataset", "matplotlib", "torchmetrics"} & set(json.loads(child.stdout))
