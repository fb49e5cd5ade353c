"""data_prep/README.md says what the code does: reasons, columns, formats; its five lines read a dataset."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from photos import encoded, pixels
from PIL import Image

from data_prep import sources
from data_prep.__main__ import VERBS, main
from data_prep.check import REASONS
from twostage.data.schema import REJECTED_SCHEMA, SAMPLES_SCHEMA

PAGE = (Path(__file__).parents[2] / "data_prep" / "README.md").read_text()


def first_cells(head: str) -> set[str]:
    """Names in the first column of the table that begins with this line."""
    table = PAGE.split(head, 1)[1].split("\n\n", 1)[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("|") and "---" not in line]
    return {name.strip(" `") for row in rows for name in row.split(",")}


def test_tables_are_whole() -> None:
    assert first_cells("Nothing is dropped silently:\n\n| reason | |") == set(REASONS)
    assert first_cells("| column | type | |") == set(SAMPLES_SCHEMA.names)
    assert first_cells("| `--format` | SOURCE | keys |") == set(sources.FORMATS)
    assert all(f"`{name}`" in PAGE.split("**rejected.parquet**")[1][:80] for name in REJECTED_SCHEMA.names)
    assert set(re.findall(r"python -m data_prep (\w+)", PAGE)) <= {*VERBS, "VERB"}


def test_the_five_lines_read_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        path = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.fromarray(pixels(number)), "PNG"))
    assert main(["build", "photos", "data/photos", "--format", "folder", "--workers", "1"]) == 0
    scope: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], scope)
    row = scope["row"]
    assert isinstance(row, dict) and isinstance(scope["image"], bytes)
    assert (tmp_path / "photos" / row["key"]).read_bytes() == scope["image"]
    assert Image.open(io.BytesIO(scope["image"])).size == (row["width"], row["height"])
    assert row["key"].startswith(f"class{scope['label']}/")
    marker = json.loads((tmp_path / "data" / "photos" / "dataset.json").read_text())
    said = set(re.findall(r"`(\w+)`", PAGE.split("**dataset.json**", 1)[1].split("\n\n", 1)[0]))
    assert set(marker) <= said, "a key of dataset.json that the page does not explain"
