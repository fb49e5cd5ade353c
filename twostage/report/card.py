"""The model card of an exported network, made from its run: README.md in the Hugging Face hub's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from markupsafe import Markup, escape

from twostage.models import BUILT_IN
from twostage.report.collect import Run, Tested, collect, setting, title_of
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
    environment.filters |= {"cell": _cell, "percent": _percent}
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
        mined=_mined(run),
        dataset=_dataset(run),
        torchvision=parts.name in OF_TORCHVISION and parts.in_channels == 3 and not parts.output_norm,
        differences=differences,
        torch_version=torch_version,
        mean_file=MEAN_IMAGE,
        as_json=lambda value: json.dumps(value),
    )
    return text.rstrip() + "\n"


def _cell(text: str) -> Markup:
    """A name as text of a Markdown page: one line, and none of its signs mean anything."""
    escaped = str(escape(" ".join(text.split())))
    for sign in "\\`*_[]|":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return Markup(escaped)


def _percent(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:.2f} %"


def _classes(trained: Trained, tested: Tested | None) -> list[tuple[str, float | None]]:
    """(name, accuracy) by class number; empty where there are too many to be listed."""
    if len(trained.class_names) > MAX_CLASSES:
        return []
    known = tested is not None and tested.per_class is not None and len(tested.per_class) == len(trained.class_names)
    values = tested.per_class.tolist() if known and tested is not None and tested.per_class is not None else None
    return [(name, None if values is None else values[c]) for c, name in enumerate(trained.class_names)]


def _mined(run: Run) -> dict[str, Any] | None:
    """What stage 1 kept, and by which rule; None where it was not done."""
    if not run.mined or "kept" not in run.mined:
        return None
    return {
        "kept": int(run.mined["kept"]),
        "images": int(run.mined.get("images") or 0),
        "purity": run.mined.get("purity"),
        "rule": setting(run, "mine", "rule") or "agreement",
        "min_score": setting(run, "mine", "min_score"),
        "min_share": setting(run, "mine", "min_share"),
        "accept_score": setting(run, "mine", "accept_score"),
        "method": setting(run, "train", "method"),
    }


def _dataset(run: Run) -> dict[str, Any]:
    """What is known of the dataset; its folder's name without the way to it."""
    named = setting(run, "data", "dataset")
    return {
        "name": Path(str(named)).name if named else "unknown",
        "digest": run.digests.get("dataset.samples", "unknown"),
        "labels": setting(run, "data", "labels") or "given",
        "clean": setting(run, "data", "clean_labels"),
        "train_split": setting(run, "data", "train_split") or "noisy_train",
        "test_split": setting(run, "data", "test_split") or "test",
        "num_samples": None if run.dataset is None else len(run.dataset),
    }
