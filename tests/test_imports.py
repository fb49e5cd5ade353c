"""The import rules of the architecture: each room knows only the rooms below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {          # a module may import modules of its own layer's number or of a smaller one
    "twostage.data": 1,
    "twostage.losses": 1,
    "twostage.ramps": 1,
    "twostage.ensembling": 1,
    "twostage.transition": 1,
    "twostage.models": 1,
    "twostage.config": 0,
    "twostage.machine_config": 0,
    "twostage.rows": 0,
    "twostage.runtime": 2,
    "twostage.stage1": 3,
    "twostage.stage2": 3,
    "twostage.report": 3,
    "twostage.report.command": 4,
    "twostage.report.trained": 4,
    "twostage.report.predict": 4,
    "twostage.report.card": 4,
    "twostage.report.export": 4,
    "twostage.report.runs": 4,
    "twostage.baselines": 4,
    "twostage.checks": 4,
    "twostage.reproduce": 4,
    "twostage.forecast": 4,
    "twostage.verbs": 4,
    "twostage.cli": 4,
    "twostage.fields": 4,
    "twostage.commands": 4,
    "twostage.completion": 4,
    "twostage.doctor": 4,
    "twostage.rehearsal": 4,
    "twostage.__main__": 4,
}
TORCH_ONLY = ("twostage/losses.py", "twostage/ramps.py", "twostage/ensembling.py", "twostage/models")
ARRAYS_ONLY = ("twostage/data/plan.py", "twostage/data/passes.py", "twostage/data/schema.py", "twostage/stage1/mine.py",
               "twostage/stage1/parts.py", "twostage/stage1/row_groups.py", "twostage/stage1/class_report.py",
               "twostage/stage1/clean_filter.py")


def sources(*places: str) -> list[Path]:
    found = []
    for place in places:
        path = ROOT / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path for path in found if path.exists()]


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(module: str) -> int | None:
    matches = [prefix for prefix in LAYERS if module == prefix or module.startswith(prefix + ".")]
    return LAYERS[max(matches, key=len)] if matches else None


@pytest.mark.parametrize("path", sources("twostage"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if own == "twostage":
        return
    assert layer(own) is not None, f"{own} has no layer: add it to LAYERS"
    for name in imports(path):
        assert not name.startswith("data_prep"), f"{own} imports {name}"
        if name.startswith("twostage."):
            assert layer(name) is not None and layer(name) <= layer(own), f"{own} must not import {name}"
    stages = {"twostage.stage1", "twostage.stage2"}
    for stage in stages:
        if own.startswith(stage):
            other = (stages - {stage}).pop()
            assert not any(name.startswith(other) for name in imports(path)), f"{own} imports {other}"


@pytest.mark.parametrize("path", sources("data_prep"), ids=lambda p: str(p.relative_to(ROOT)))
def test_data_prep_knows_only_the_schema(path: Path) -> None:
    for name in imports(path):
        assert not name.startswith("twostage") or name.startswith("twostage.data.schema"), f"{path} imports {name}"


@pytest.mark.parametrize("path", sources(*TORCH_ONLY), ids=lambda p: str(p.relative_to(ROOT)))
def test_formulas_and_models_know_only_torch(path: Path) -> None:
    own = ("twostage.losses", "twostage.ramps", "twostage.ensembling", "twostage.models")
    for name in imports(path):
        assert name.split(".")[0] in sys.stdlib_module_names | {"torch"} or name.startswith(own), f"{path}: {name}"


@pytest.mark.parametrize("path", sources(*ARRAYS_ONLY), ids=lambda p: str(p.relative_to(ROOT)))
def test_decisions_know_only_arrays(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        assert top in sys.stdlib_module_names | {"numpy", "pyarrow", "twostage"}, f"{path}: {name}"
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, f"{module} loads torch"


def test_only_one_file_imports_dali() -> None:
    users = [path.name for path in sources("twostage", "data_prep") if any("nvidia" in n for n in imports(path))]
    assert users == ["pipeline.py"]


def test_nothing_needs_torchvision_or_timm() -> None:
    for path in sources("twostage", "data_prep"):
        assert not {n.split(".")[0] for n in imports(path)} & {"torchvision", "timm"}, path


def test_files_stay_readable() -> None:
    for path in sources("twostage", "data_prep"):
        assert len(path.read_text().splitlines()) <= 330, f"{path} is too long to read in one sitting"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                limit = 120 if node.name in ("pretrain", "train", "finetune") else 60
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= limit, f"{path}: {node.name} has {lines} lines"
