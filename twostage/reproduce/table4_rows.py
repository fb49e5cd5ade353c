"""The thirteen rows of Table 4: what each is, what it starts from, and by which command it is run. Starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twostage.data.schema import InputError, nearest
from twostage.reproduce.done import is_tested
from twostage.reproduce.grid import split_names
from twostage.runtime.current import is_of

OWN_KEYS: Final = ("run.dir", "run.baselines", "run.two_stage", "run.finetune", "data.dataset", "finetune.init")
"""configuration fields that make a row what it is, or that are set here"""
FIRST, LAST = "baseline_cross_entropy", "train"
START: Final = "model.weights"
TUNED: Final = "finetune.init"


@dataclass(frozen=True)
class Row:
    """A row of the table, and the run that makes it."""

    number: int
    network: str
    method: str
    initialization: str
    training_set: str
    model: str
    """folder of the run that holds its network"""
    field: str | None = None
    """configuration field that names the network of the row it starts from"""
    starts_from: int | None = None
    """the row that has to be there first"""
    shares: int | None = None
    """a row whose first stages are the same: they are taken over from it where it is there"""
    stages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder and its configuration file."""
        return f"row{self.number:02d}"

    @property
    def title(self) -> str:
        """For people."""
        return f"row {self.number} ({self.network}, {self.method}, {self.training_set})"

    def is_done(self, out: Path) -> bool:
        """Whether its network is trained from the one it starts from, as that is now, and tested."""
        if not is_tested(self.folder(out), self.model):
            return False
        if self.starts_from is None:
            return True
        recorded = START if self.field == START else "weights"      # `finetune` records what it was begun with as that
        return is_of(self.folder(out) / self.model, recorded, ROWS[self.starts_from].network_file(out))

    def figures(self, out: Path) -> Path:
        """The file that its test writes."""
        return self.folder(out) / "evaluate" / self.model / "test.json"

    def folder(self, out: Path) -> Path:
        """Its run folder."""
        return out / "runs" / self.name

    def network_file(self, out: Path) -> Path:
        """The weights that other rows start from."""
        return self.folder(out) / self.model / "model.safetensors"


ALEXNET, RESNET, CE = "AlexNet", "50-ResNet", "cross-entropy"
NOISY, CLEAN, BOTH = "1M", "50K", "1M, 50K"
IMAGENET: Final = "ImageNet"
ROWS: Final[dict[int, Row]] = {
    row.number: row
    for row in (
        Row(1, ALEXNET, "pseudo-label", "#9", BOTH, "baseline_pseudo_label_clean", START, 9),
        Row(2, ALEXNET, "bottom-up", "#9", BOTH, "baseline_bottom_up", START, 9),
        Row(3, ALEXNET, "label noise model", "#9", BOTH, "baseline_label_noise", START, 9),
        Row(4, RESNET, CE, IMAGENET, NOISY, FIRST),
        Row(5, RESNET, "backward", IMAGENET, NOISY, "baseline_backward", shares=4, stages=(FIRST,)),
        Row(6, RESNET, "forward", IMAGENET, NOISY, "baseline_forward", shares=4, stages=(FIRST,)),
        Row(7, RESNET, "ours", IMAGENET, NOISY, LAST),
        Row(8, RESNET, "ours", IMAGENET, BOTH, LAST, shares=7, stages=("pretrain",)),
        Row(9, ALEXNET, CE, IMAGENET, CLEAN, FIRST),
        Row(10, RESNET, CE, IMAGENET, CLEAN, FIRST),
        Row(11, RESNET, CE, "#6", CLEAN, "finetune", TUNED, 6),
        Row(12, RESNET, CE, "#7", CLEAN, "finetune", TUNED, 7),
        Row(13, RESNET, CE, "#8", CLEAN, "finetune", TUNED, 8),
    )
}


def chosen(names: Iterable[str]) -> list[Row]:
    """The named rows and those they start from, each after what it starts from or takes over; none named: all.

    Raises:
        InputError: no such row.
    """
    legal = {str(number): number for number in ROWS} | {row.name: row.number for row in ROWS.values()}
    wanted = [name.removeprefix("#") for name in split_names(names)]
    for name in wanted:
        if name not in legal:
            raise InputError(f"--rows {name}: {nearest(name, map(str, ROWS))}")
    asked = {legal[name] for name in wanted} or set(ROWS)
    asked |= {start for number in asked if (start := ROWS[number].starts_from) is not None}
    order: list[Row] = []

    def add(number: int) -> None:
        row = ROWS[number]
        before = row.starts_from if row.starts_from is not None else row.shares
        if before in asked:
            add(before)
        if row not in order:
            order.append(row)

    for number in sorted(asked):
        add(number)
    return order


def check_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    """`section.key=value` as arguments of `twostage run`.

    Raises:
        InputError: not of this form, or a field that makes a row what it is.
    """
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or "." not in key:
            raise InputError(f"--set {text}: expected section.key=value, such as pretrain.epochs=1")
        if key in OWN_KEYS:
            raise InputError(f"--set {text}: {key} makes a row what it is; change it in files of your own (--config)")
    return tuple(f"--{text}" for text in overrides)


def run_arguments(row: Row, *, config: Path, dataset: Path, out: Path, overrides: Sequence[str]) -> tuple[str, ...]:
    """Arguments of `twostage run`. What the table says of a row comes last, so that no override can change it."""
    own = [f"--run.dir={row.folder(out)}", f"--data.dataset={dataset}"]
    if row.field is not None and row.starts_from is not None:
        own.append(f"--{row.field}={ROWS[row.starts_from].network_file(out)}")
    return ("--config", str(config / f"{row.name}.yaml"), *overrides, *own)
