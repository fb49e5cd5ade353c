"""Curves as SVG images that follow the reader's light or dark mode. Knows matplotlib, and nothing of the run folder."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

Floats = npt.NDArray[np.float64]
MAX_POINTS: Final = 300
Scale = Literal["loss", "share", "number"]
ROUND: Final = (1, 2, 2.5, 5, 10)       # ticks are round numbers

# What is drawn with -> (in light mode, in dark mode). The page's style sheet has the same colours under the same names.
COLOURS: Final = {
    "ink": ("#5b6472", "#9aa5b4"),
    "rule": ("#dfe3e8", "#2d343e"),
    "grey": ("#7d8694", "#8d97a6"),
    "sand": ("#a8894a", "#c9ab6b"),
    "amber": ("#c8660a", "#f0a04b"),
    "blue": ("#1d63c4", "#6aa8ff"),
    "green": ("#1b7545", "#5cc58c"),
    "violet": ("#7a4fc9", "#b69af0"),
    "teal": ("#0e7f8c", "#4fc3d0"),
    "rose": ("#bf3f7f", "#f08fbf"),
}
_DRAWN: Final = {name: f"#0102{number:02x}" for number, name in enumerate(COLOURS)}   # stand-ins, replaced in the SVG
_SETTINGS: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "twostage",        # without it, every run of the program names clip paths anew
    "font.size": 9.0,
    "font.family": "DejaVu Sans",      # comes with matplotlib: the same layout everywhere
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _DRAWN["rule"],
    "axes.labelcolor": _DRAWN["ink"],
    "xtick.color": _DRAWN["ink"],
    "ytick.color": _DRAWN["ink"],
    "text.color": _DRAWN["ink"],
    "grid.color": _DRAWN["rule"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}


@dataclass(frozen=True)
class Picture:
    """An image that lies in the page itself."""

    src: str
    """data URI"""
    alt: str


@dataclass(frozen=True)
class Line:
    """One curve; `colour` is a name from COLOURS."""

    title: str
    x: Floats
    y: Floats
    colour: str


def curve_panel(lines: Sequence[Line], *, title: str, scale: Scale = "number") -> Picture:
    """Curves over steps. The alternative text says for each where it begins, ends, and its extremes.

    A loss that falls far gets a logarithmic axis, a share percents, and a number an axis from 0.
    """
    percent = scale == "share"
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _canvas(4.0, 2.2)
        for above, line in zip(range(len(lines) - 1, -1, -1), lines, strict=True):
            x, y = thinned(line.x, line.y)
            width = 1.7 + 1.5 * above if len(lines) <= 3 else 1.5   # few equal curves stay visible under one another
            axes.plot(x, y, color=_DRAWN[line.colour], linewidth=width, marker="o" if len(x) < 15 else None,
                      markersize=width + 1.5, clip_on=False)
        values = np.concatenate([line.y for line in lines])
        values = values[np.isfinite(values)]
        if scale == "loss" and values.size and values.min() > 0 and values.max() / values.min() > 30:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        elif percent:
            low = float(values.min()) if values.size else 0.0
            axes.set_ylim(max(0.0, low - 0.06) if low > 0.3 else 0.0, min(1.0, float(values.max()) + 0.04) or 1.0)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
        else:
            axes.set_ylim(bottom=min(0.0, float(values.min())) if values.size else 0.0)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.set_xlabel("step", loc="right", labelpad=1)
        return Picture(_svg(figure), f"{title}. " + " ".join(_in_words(line, percent) for line in lines))


def ranking_panel(
    scores: npt.NDArray[np.float32], kept: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_] | None,
    threshold: float | None, *, class_name: str,
) -> Picture:
    """One class's scores from the highest to the lowest, those kept filled in, the lowest score kept as a dashed line.

    Args:
        scores: (labels,) probability of the given label, in any order.
        kept: (labels,) whether stage 1 kept the label.
        right: (labels,) whether the label is the true one; drawn as its share along the ranking. None where unknown.
        threshold: the lowest score kept, None where nothing was.
    """
    order = np.argsort(-scores, kind="stable")
    scores, kept = scores[order].astype(np.float64), kept[order]
    rank = np.arange(1, len(scores) + 1, dtype=np.float64)
    chosen = np.unique(np.linspace(0, len(scores) - 1, min(len(scores), MAX_POINTS)).astype(np.int64))
    last_kept = int(np.flatnonzero(kept)[-1]) + 1 if kept.any() else 0
    words = f"Ranking of the {len(scores):,} labels {class_name}: {int(kept.sum()):,} are kept"
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _canvas(3.1, 1.75, left=0.3, below=0.22)
        axes.plot(rank[chosen], scores[chosen], color=_DRAWN["blue"])
        inside = chosen[chosen < last_kept]
        axes.fill_between(rank[inside], scores[inside], color=_DRAWN["blue"], alpha=0.22, linewidth=0)
        if threshold is not None:
            axes.axhline(threshold, color=_DRAWN["ink"], linewidth=1, linestyle=(0, (4, 3)))
            words += f", down to a score of {threshold:.3f}"
        if right is not None and len(scores):
            bins = [part for part in np.array_split(np.arange(len(scores)), min(10, len(scores))) if part.size]
            share = [float(right[order][part].mean()) for part in bins]
            axes.plot([rank[part].mean() for part in bins], share, color=_DRAWN["green"], linestyle=(0, (1, 1.6)),
                      marker="o", markersize=2.5, linewidth=1.3)
            words += f"; along it the share of right labels goes from {share[0]:.0%} to {share[-1]:.0%}"
        axes.set_ylim(0, 1.03)
        axes.set_xlim(0, max(1, len(scores)))
        axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        return Picture(_svg(figure), words + ".")


def thinned(x: Floats, y: Floats, limit: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """Means over neighbours, so that at most `limit` finite points are left."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= limit:
        return x, y
    parts = np.array_split(np.arange(len(x)), limit)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _in_words(line: Line, percent: bool) -> str:
    finite = line.y[np.isfinite(line.y)]
    if not finite.size:
        return f"{line.title}: no finite value."
    first, last, low, high = (
        f"{100 * v:.1f} %" if percent else f"{v:.4g}" for v in (finite[0], finite[-1], finite.min(), finite.max())
    )
    return f"{line.title}: from {first} to {last}, lowest {low}, highest {high}, over {line.x[-1]:,.0f} steps."


def _canvas(width: float, height: float, left: float = 0.56, below: float = 0.36) -> tuple[Any, Any]:
    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    right, above = 0.16, 0.07       # inches; a layout engine would draw everything twice, and panels would not line up
    axes = figure.add_axes((left / width, below / height, (width - left - right) / width, 1 - (below + above) / height))
    axes.patch.set_alpha(0.0)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as a data URI; its stand-in colours become CSS variables with a light and a dark value."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]       # the document type before it names an outside address
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    for name, drawn in _DRAWN.items():
        text = text.replace(drawn, f"var(--{name})")
    light, dark = ("".join(f"--{name}:{pair[mode]};" for name, pair in COLOURS.items()) for mode in (0, 1))
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    start = text.index(">", text.index("<svg")) + 1
    text = text[:start] + style + text[start:]
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
