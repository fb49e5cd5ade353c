"""The reference page says what the code says."""

from __future__ import annotations

from tests.reference import PAGE, page
from twostage.cli import keys
from twostage.config import Config


def test_the_page_is_as_the_definitions_are() -> None:
    assert PAGE.read_text() == page(), "regenerate it: python -m tests.reference"


def test_nothing_is_left_out() -> None:
    text = PAGE.read_text()
    names = keys(Config)
    sections = {name.rpartition(".")[0] for name in names} | {"rank"}
    for name in names:
        place = f"### {name}\n" if name in sections else f"| `{name}` | "
        assert text.count(place) == 1, name
    assert "| `train.plateau.stop_after` | integer \\| null | `20` |" in text, "a default that its section changes"
    assert "| `finetune.optimizer.lr` | number | `1e-05` |" in text
