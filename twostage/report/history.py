"""How a model of a run was trained, in sentences for its model card."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from twostage.report.collect import Run, setting, title_of
from twostage.report.tables import number
from twostage.rows import BY_FOLDER, CLEAN_FOLDERS, Baseline, titles


def cell(text: str) -> Markup:
    """A name as text of a Markdown page: one line, and none of its signs mean anything."""
    escaped = str(escape(" ".join(text.split())))
    for sign in "\\`*_[]|":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return Markup(escaped)


def percent(value: float | None) -> str:
    """0.4256 -> '42.56 %'; unknown values as a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


def history(run: Run, model: str) -> list[Markup]:
    """What was done to get this model, in order. Names of the user's cannot break out of it."""
    row = BY_FOLDER.get(model)
    if model == "finetune":
        return _fine_tuned(run)
    if row is not None and row.noise_model is not None:
        said = "It was trained together with a model of how labels go wrong; half of each batch had labels as given{}, "
        return [Markup(said + "the other half those of the clean set, {}.").format(_given(run), _clean_set(run))]
    if model in CLEAN_FOLDERS:
        said = "{} all images, but of their labels only with those of the clean set, {} ({})."
        return [Markup(said).format(_started(run), _clean_set(run), cell(_method(run, row)))]
    if model == "train" or (row is not None and row.stage2 is not None):
        said = "{} all images and only these labels ({})."
        return [*_mining(run), Markup(said).format(_started(run), cell(_method(run, row)))]
    first = [Markup("It was trained on all labels as given{}.").format(_given(run))]
    if row is not None and row.refined_val:
        first.append(Markup("Its weights were chosen by those of the held-out labels that stage 1 kept."))
    return first


def mined_by(run: Run, model: str) -> str | None:
    """The rule by which the labels were mined that a model was trained on; None where those were none of them."""
    if model == "finetune":
        model = str(setting(run, "finetune", "init") or "train")
    row = BY_FOLDER.get(model)
    if model != "train" and (row is None or row.stage2 is None or model in CLEAN_FOLDERS):
        return None
    return str(setting(run, "mine", "rule") or "agreement")


def _mining(run: Run) -> list[Markup]:
    """What stage 1 did."""
    by_classifiers = setting(run, "mine", "rule") == "clean_filter"
    if by_classifiers:
        said = "Classifiers, one for each class, were trained on the clean set, {}, and scored every image. "
        said += "A label was kept when its class's classifier gave it at least {}."
        found = [Markup(said).format(_clean_set(run), setting(run, "mine", "accept_score"))]
    else:
        said = "A first network was trained on all labels as given{}, and scored every image. "
        said += "A label was kept when it agrees with the prediction and its probability is at least {}, and in each "
        said += "class at least the best {} of its labels, as far as they agree."
        share = percent(setting(run, "mine", "min_share"))
        found = [Markup(said).format(_given(run), setting(run, "mine", "min_score"), share)]
    figures = run.mined
    if "kept" in figures:
        purity = figures.get("purity")
        right = "" if purity is None else f", {percent(purity)} of them right"
        kept = f"Kept: {number(int(figures['kept']))} of {number(int(figures.get('images') or 0))} labels{right}."
        found.append(Markup(kept))
    if by_classifiers and figures.get("clean_set"):
        found.append(Markup(f"The {number(int(figures['clean_set']))} labels of the clean set were added."))
    return found


def _fine_tuned(run: Run) -> list[Markup]:
    """On what, and from which network."""
    start = str(setting(run, "finetune", "init") or "train")
    if "/" in start:
        digest = _weights_digest(run)
        named = Markup(", SHA-256 {}").format(cell(digest)) if digest else ""
        said = "It began as a network from outside of this run ({}{}), whose training is not recorded here."
        before = [Markup(said).format(cell(_file_name(Path(start))), named)]
    else:
        before = history(run, start) if start != "finetune" else []
        if start != "train":
            before.insert(0, Markup("It began as this model: {}.").format(cell(title_of(run, start))))
    return [*before, Markup("It was then fine-tuned on the clean set, {}.").format(_clean_set(run))]


def _file_name(path: Path) -> str:
    """`row07/train` of a run's folder, else the file's own name: the way to it is nobody's business."""
    return f"{path.parts[-3]}/{path.parts[-2]}" if path.parent.name in titles() and len(path.parts) > 2 else path.name


def _weights_digest(run: Run) -> str | None:
    """Of what was fine-tuned."""
    inputs: Any = run.read(run.path / "finetune" / "done.json", lambda path: json.loads(path.read_bytes())["inputs"])
    found = inputs.get("weights") if isinstance(inputs, dict) else None
    return found if isinstance(found, str) else None


def _started(run: Run) -> str:
    """What stage 2 went on from."""
    if setting(run, "train", "init") == "scratch":
        return "A new network was trained with"
    return "The network that was trained on all labels as given was trained further with"


def _method(run: Run, row: Baseline | None) -> str:
    own = None if row is None else row.stage2
    return str(own or setting(run, "train", "method") or "pi_model")


def _given(run: Run) -> Markup:
    column, split = setting(run, "data", "labels") or "given", setting(run, "data", "train_split") or "noisy_train"
    return Markup(" (column {} of the split {})").format(cell(str(column)), cell(str(split)))


def _clean_set(run: Run) -> Markup:
    return Markup("the split {}").format(cell(str(setting(run, "data", "clean_split") or "clean_train")))
