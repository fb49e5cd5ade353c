"""The paper's tables, ours beside its own: from what the cells hold to tables of text. Reads no file.

Figures are in percent. Spreads are standard deviations of a sample (n - 1). A difference is marked when it exceeds both
spreads, as far as they are known: the paper gives none for CIFAR-10, and one run has none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twostage.reproduce import paper
from twostage.reproduce.grid import OURS, ROWS, noise_title
from twostage.reproduce.labels import STATES, Ceiling, Floats
from twostage.reproduce.paper import Published
from twostage.reproduce.results import CellResults
from twostage.rows import BASELINES

MARK: Final = "†"
UNKNOWN: Final = "–"
STATE_TITLES: Final = {
    "given": "original training set",
    "argmax": "after the correction of Patrini et al. (arg max)",
    "sampling": "after the correction of Patrini et al. (sampling)",
    "stage1": "after stage 1",
}


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column is left-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """One page of tables."""

    title: str
    intro: tuple[str, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Sample:
    """The same figure of several runs, in percent."""

    mean: float
    spread: float | None
    """None for one run"""
    num: int


def sample(values: Iterable[float | None]) -> Sample | None:
    """Mean and standard deviation (n - 1) of shares 0..1, in percent; unknown values are left out; None without any."""
    known = [100 * value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return Sample(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def exceeds(ours: Sample, published: Published) -> bool:
    """Whether the difference is larger than both spreads; False where neither is known."""
    spreads = [spread for spread in (ours.spread, published.spread) if spread is not None]
    # 1e-9: as floats, 98.0 - 97.9 is a little less than 0.1
    return bool(spreads) and abs(ours.mean - published.value) > max(spreads) + 1e-9


def row_title(row: str, method: str | None = None) -> str:
    """A method's name for people; `method`: of stage 2, where it is known."""
    if row != OURS:
        return BASELINES[row].title         # type: ignore[index]
    return "ours" if method is None else f"ours ({method.replace('_', ' ')})"


def table1(cells: Sequence[CellResults], noises: Sequence[str], dataset: str, intro: Sequence[str]) -> Document:
    """Accuracy by the share of each class's labels that stage 1 keeps at least, one section per noise."""
    tables = []
    for noise in noises:
        group = [cell for cell in cells if cell.noise == noise]
        rows = []
        for share in sorted({cell.min_share for cell in group}):
            of_share = [cell for cell in group if cell.min_share == share]
            published = paper.table1(noise, share) if dataset == "cifar10" else None
            kept = sample(_ratio(cell.seeds.get("kept"), cell.seeds.get("images")) for cell in of_share)
            purity = sample(cell.seeds.get("purity") for cell in of_share)
            compared = _compared(sample(_accuracies(of_share, OURS)), published)
            rows.append((f"{100 * share:g} %", *compared, _mean(kept), _mean(purity)))
        columns = ("labeled", "ours", "paper", "difference", "", "labels kept", "of these right")
        notes = () if dataset == "cifar10" else ("The paper has this table for CIFAR-10 only.",)
        tables.append(Table(noise_title(noise), columns, tuple(rows), notes))
    return Document(f"Table 1, {dataset}: accuracy by the share of labels kept", tuple(intro), tuple(tables))


def table2(
    shares: Mapping[str, Sequence[Mapping[str, Floats]]],
    class_names: Sequence[str],
    dataset: str,
    intro: Sequence[str],
) -> Document:
    """Correct, incorrect and no labels before and after; `shares`: by noise, of each run, by state of the labels."""
    tables = []
    for noise, runs in shares.items():
        states = [state for state in STATES if any(state in run for run in runs)]
        compare = dataset == "cifar10" and noise == "asym0.6"
        rows = []
        for state in states:
            cells = [STATE_TITLES[state]]
            for kind in range(3):
                ours = sample(run[state][-1, kind] for run in runs if state in run)
                published = Published(paper.TABLE2_SHARES[state][kind]) if compare else None
                cells += [_with_spread(ours), _published(published)]
            rows.append(tuple(cells))
        columns = ("labels", "correct", "paper", "incorrect", "paper", "none", "paper")
        notes = [
            "Sampling: the expected share, without random numbers. The correction's vector is P(class | label) by "
            "Bayes' rule from the estimated transition matrix.",
            "Stage 1 leaves the labels it rejects out; in the paper, its three figures add up to 98.0.",
        ]
        tables.append(Table(f"{noise_title(noise)}: labels of the training set, %", columns, tuple(rows), tuple(notes)))
        tables.append(_states_by_class(noise, runs, states, class_names))
    return Document(f"Table 2, {dataset}: correct and incorrect labels", tuple(intro), tuple(tables))


def table3(
    cells: Sequence[CellResults],
    noises: Sequence[str],
    dataset: str,
    intro: Sequence[str],
    *,
    method: str | None,
    ceilings: Mapping[str, Ceiling],
) -> Document:
    """Accuracy of each method: all noises at a glance, then by noise beside the paper and by class; the seed sets."""
    by_noise = {noise: [cell for cell in cells if cell.noise == noise] for noise in noises}
    rows = [row for row in ROWS if any(cell.result(row) for cell in cells)]
    tables = [_overview(by_noise, rows, dataset, method)]
    for noise, group in by_noise.items():
        if group:
            names = group[0].class_names
            notes = _ceiling_notes(ceilings.get(noise), names)
            tables.append(_beside_paper(noise, group, rows, dataset, method, notes))
            tables.append(_accuracy_by_class(noise, group, rows, method))
            tables += _seed_table(noise, group)
    return Document(f"Table 3, {dataset}: accuracy on the test set", tuple(intro), tuple(tables))


def _overview(
    by_noise: Mapping[str, Sequence[CellResults]], rows: Sequence[str], dataset: str, method: str | None
) -> Table:
    lines = []
    for row in rows:
        line = [row_title(row, method)]
        for noise, group in by_noise.items():
            ours, published = sample(_accuracies(group, row)), paper.table3(dataset, noise, row)
            _, _, difference, mark = _compared(ours, published)
            line.append(_mean(ours) if published is None or ours is None else f"{_mean(ours)} ({difference}){mark}")
        lines.append(tuple(line))
    notes = (f"Mean, %, and in brackets the difference from the paper; {MARK}: it exceeds both spreads.",)
    return Table("At a glance", ("method", *map(noise_title, by_noise)), tuple(lines), notes)


def _beside_paper(
    noise: str,
    group: Sequence[CellResults],
    rows: Sequence[str],
    dataset: str,
    method: str | None,
    notes: Sequence[str],
) -> Table:
    lines = []
    for row in rows:
        compared = _compared(sample(_accuracies(group, row)), paper.table3(dataset, noise, row))
        seconds = [result.seconds for cell in group if (result := cell.result(row)) and result.seconds is not None]
        time = f"{statistics.fmean(seconds):.0f}" if seconds else UNKNOWN
        lines.append((row_title(row, method), *compared, time))
    notes = (*notes, "Seconds: wall clock of the row's own training; with stage 1 where it goes on from that.")
    copied = paper.copied_cross_entropy(dataset, noise)
    if copied is not None and "cross_entropy" in rows:
        notes = (*notes, f"The paper also quotes cross-entropy from Patrini et al.: {_published(copied)}.")
    columns = ("method", "ours, mean ± std (n)", "paper", "difference", "", "seconds a run")
    return Table(f"{noise_title(noise)}: beside the paper", columns, tuple(lines), tuple(notes))


def _accuracy_by_class(noise: str, group: Sequence[CellResults], rows: Sequence[str], method: str | None) -> Table:
    names = group[0].class_names
    lines = []
    for row in rows:
        results = [result for cell in group if (result := cell.result(row))]
        means = (_mean(sample(result.per_class[c] for result in results)) for c in range(len(names)))
        lines.append((row_title(row, method), *means))
    return Table(f"{noise_title(noise)}: accuracy by class", ("method", *names), tuple(lines))


def _seed_table(noise: str, group: Sequence[CellResults]) -> list[Table]:
    cells = [cell for cell in group if cell.classes]
    if not cells:
        return []

    def line(name: str, numbers: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        kept = sample(_ratio(number["kept"], number["images"]) for number in numbers)
        ends = (_mean(sample(number[key] for number in numbers)) for key in ("purity", "coverage"))
        images = statistics.fmean(number["images"] for number in numbers)
        return (name, f"{images:.0f}", f"{statistics.fmean(n['kept'] for n in numbers):.0f}", _mean(kept), *ends)

    lines = [line(name, [cell.classes[c] for cell in cells]) for c, name in enumerate(cells[0].class_names)]
    lines.append(line("all", [cell.seeds for cell in cells]))
    columns = ("noisy label", "images", "kept", "kept, %", "purity", "coverage")
    notes = ("Means over the runs. Purity: right labels among those kept. Coverage: kept labels among the right.",)
    return [Table(f"{noise_title(noise)}: the seed set of stage 1", columns, tuple(lines), notes)]


def _states_by_class(
    noise: str, runs: Sequence[Mapping[str, Floats]], states: Sequence[str], class_names: Sequence[str]
) -> Table:
    """Of the corrections only the correct labels: all others are incorrect. Stage 1 may leave a label out."""
    wanted: list[tuple[str, int, str]] = [(state, 0, f"{state}: correct") for state in states if state != "stage1"]
    if "stage1" in states:
        wanted += [("stage1", kind, f"stage 1: {word}") for kind, word in enumerate(("correct", "incorrect", "none"))]
    lines = [
        (name, *(_mean(sample(run[state][c, kind] for run in runs if state in run)) for state, kind, _ in wanted))
        for c, name in enumerate((*class_names, "all"))
    ]
    columns = ("true class", *(title for _, _, title in wanted))
    return Table(f"{noise_title(noise)}: by class, %", columns, tuple(lines))


def _ceiling_notes(ceiling: Ceiling | None, class_names: Sequence[str]) -> list[str]:
    if ceiling is None:
        return []
    if not ceiling.pairs:
        return ["Ceiling: the labels tell all classes apart."]
    pairs = "; ".join(
        f"of the images of {class_names[i]} and {class_names[j]}, {100 * share:.1f} % bear the other's label"
        for i, j, share in ceiling.pairs
    )
    return [
        f"Ceiling: {pairs}. With these names exchanged, more training labels would be right, so the labels alone "
        f"cannot tell which is which. A method that knows nothing else names them the wrong way round, and its "
        f"accuracy is at most {100 * ceiling.accuracy:.1f} %; what lies above that is luck or other knowledge."
    ]


def _compared(ours: Sample | None, published: Published | None) -> tuple[str, str, str, str]:
    """Ours, the paper's, the difference, and the mark."""
    if ours is None or published is None:
        return _with_spread(ours), _published(published), UNKNOWN, ""
    difference = f"{ours.mean - published.value:+.1f}"
    difference = "±0.0" if float(difference) == 0 else difference.replace("-", "−")
    return _with_spread(ours), _published(published), difference, MARK if exceeds(ours, published) else ""


def _accuracies(group: Sequence[CellResults], row: str) -> list[float]:
    return [result.accuracy for cell in group if (result := cell.result(row))]


def _with_spread(value: Sample | None) -> str:
    if value is None:
        return UNKNOWN
    spread = "" if value.spread is None else f" ± {value.spread:.2f}"
    return f"{value.mean:.2f}{spread} ({value.num})"


def _published(value: Published | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value.value:.1f}" if value.spread is None else f"{value.value:.1f} ± {value.spread:.1f}"


def _mean(value: Sample | None) -> str:
    return UNKNOWN if value is None else f"{value.mean:.1f}"


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


