"""The model card of an exported network, made from its run: README.md in the Hugging Face hub's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2

from twostage.models import BUILT_IN
from twostage.report.collect import Run, Tested, collect, setting, title_of
from twostage.report.history import cell, history, mined_by, percent
from twostage.report.trained import MEAN_IMAGE, Trained

OF_TORCHVISION: Final = ("alexnet", "resnet18", "resnet50")
assert set(OF_TORCHVISION) <= set(BUILT_IN)
MAX_CLASSES: Final = 200
"""that are listed one by one"""


def card(run_dir: Path, trained: Trained, differences: Mapping[str, float], torch_version: str) -> str:
    """The card as Markdown. Names of classes cannot break out of it; no path of the machine is in it.

    Args:
        differences: what was written beside the weights, with the greatest difference of a probability.

    Raises:
        InputError: there is no run in the folder.
    """
    run = collect(run_dir)
    parts = trained.architecture
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,            # a card is shown as HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "percent": percent}
    tested = next((model for model in run.tested if model.name == trained.name), None)
    text = environment.get_template("card.md.j2").render(
        trained=trained,
        parts=parts,
        augment=trained.augment,
        title=title_of(run, trained.name),
        tested=tested,
        all_tested=run.tested,
        classes=_classes(trained, tested),
        num_classes=len(trained.class_names),
        history=history(run, trained.name),
        mined_by=mined_by(run, trained.name),
        dataset=_dataset(run),
        torchvision=parts.name in OF_TORCHVISION and parts.in_channels == 3 and not parts.output_norm,
        differences=differences,
        torch_version=torch_version,
        mean_file=MEAN_IMAGE,
        as_json=lambda value: json.dumps(value),
    )
    return text.rstrip() + "\n"


def _classes(trained: Trained, tested: Tested | None) -> list[tuple[str, float | None]]:
    """(name, accuracy) by class number; empty where there are too many to be listed."""
    if len(trained.class_names) > MAX_CLASSES:
        return []
    known = tested is not None and tested.per_class is not None and len(tested.per_class) == len(trained.class_names)
    values = tested.per_class.tolist() if known and tested is not None and tested.per_class is not None else None
    return [(name, None if values is None else values[c]) for c, name in enumerate(trained.class_names)]


def _dataset(run: Run) -> dict[str, Any]:
    """What is known of the dataset; its folder's name without the way to it."""
    named = setting(run, "data", "dataset")
    return {
        "name": Path(str(named)).name if named else "unknown",
        "digest": run.digests.get("dataset.samples", "unknown"),
        "clean": setting(run, "data", "clean_labels"),
        "test_split": setting(run, "data", "test_split") or "test",
        "num_samples": None if run.dataset is None else len(run.dataset),
    }
