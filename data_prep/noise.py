"""Label noise: a new label column in which samples of one split are relabelled by a transition matrix.

Each sample's label is drawn by inverting its row of the matrix at a uniform number that depends on the seed and the
sample's index alone. So neither the other samples nor the split matter, and the samples that are flipped at one rate
are also flipped at every higher one with the same seed.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import transitions
from data_prep.summary import printable
from data_prep.transitions import Matrix
from twostage.data.schema import (
    GIVEN_LABELS,
    NO_LABEL,
    InputError,
    LabelColumn,
    file_digest,
    labels_path,
    nearest,
    read_labels,
    read_marker,
    write_labels,
)

KINDS: Final = ("symmetric", "asymmetric", "matrix")
SIDE_BY_SIDE: Final = 14     # up to so many classes, whole matrices are printed
MAX_ROWS: Final = 20         # of more classes, at most so many rows
MAX_STORED: Final = 256      # with more classes, the column keeps the matrix's rule and digest, not its numbers
STREAM: Final = 0x6E6F697365  # keeps these random numbers apart from others with the same seed (a permutation, say)

Ints = npt.NDArray[np.int64]
EXAMPLES: Final = """\
examples:
  python -m data_prep noise data/mnist --name asym0.6 --kind asymmetric --flips mnist --rate 0.6 --rng-seed 0
  python -m data_prep noise data/pets --name swapped --kind asymmetric --flips "cat>dog" --rate 0.4 --rng-seed 0
"""


def draw_labels(index: Ints, label: Ints, matrix: Matrix, rng_seed: int) -> Ints:
    """Noisy labels: (rows,) int64, drawn for each sample from row `label` of `matrix`; NO_LABEL stays.

    Args:
        index: (rows,) sample indices; together with `rng_seed` they fix the random numbers.
        label: (rows,) labels 0..C-1 or NO_LABEL.
        matrix: (C, C), rows sum to one.
        rng_seed: not negative.
    """
    noisy = label.copy()
    if index.size == 0:
        return noisy
    # the raw stream is the part of numpy's generators that is promised never to change
    bits = np.random.Philox(np.random.SeedSequence([rng_seed, STREAM])).random_raw(int(index.max()) + 1)
    uniform = (bits[index] >> np.uint64(11)) * 2.0**-53
    by_label = np.argsort(label, kind="stable")
    for rows in np.split(by_label, np.flatnonzero(np.diff(label[by_label])) + 1):
        own = int(label[rows[0]])
        if own == NO_LABEL:
            continue
        order = np.concatenate([[own], np.delete(np.arange(len(matrix)), own)])     # first: "not flipped"
        order = order[matrix[own, order] > 0]
        upper = np.cumsum(matrix[own, order])
        noisy[rows] = order[np.minimum(np.searchsorted(upper, uniform[rows], side="right"), len(order) - 1)]
    return noisy


def transition_counts(label: Ints, noisy: Ints, num_classes: int) -> Ints:
    """(C, C) counts: how many samples went from label i to label j; samples without a label do not count."""
    known = label != NO_LABEL
    flat = np.bincount(label[known] * num_classes + noisy[known], minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = "Write a label column with artificial noise; no image is touched."
    parser.epilog = EXAMPLES
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a dataset made by `data_prep build`")
    parser.add_argument("--name", required=True, help="of the new label column: labels/NAME.parquet")
    parser.add_argument(
        "--kind",
        required=True,
        help="symmetric: a label becomes each other one with probability RATE / (C - 1); asymmetric: the classes in "
        "--flips change with probability RATE; matrix: any transition matrix",
    )
    parser.add_argument("--rate", type=float, help="probability, 0 to 1, that the label of a flipped class changes")
    parser.add_argument("--rng-seed", type=int, required=True, help="the same number gives the same labels")
    parser.add_argument("--from", dest="parent", default=GIVEN_LABELS, help="label column to start from (%(default)s)")
    parser.add_argument(
        "--flips",
        help=f"for asymmetric: {', '.join(transitions.FLIPS)}, {transitions.NEXT} (each class to the one after it), "
        'or pairs by class name or number, quoted: "7>1,cat>dog"',
    )
    parser.add_argument(
        "--matrix",
        help="for matrix: a .json, .csv or .npy file whose row i holds the probabilities that class i is labelled 0, "
        f"1, ... (each row sums to 1), or a name, with --rate: {', '.join(transitions.NAMES)}",
    )
    parser.add_argument("--split", default="noisy_train", help="only its labels are changed (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a column that was made in another way")
    parser.add_argument("--dry-run", action="store_true", help="print what would come out, write nothing")


def main(args: argparse.Namespace) -> int:
    """Draws the labels, prints asked-for and realised matrix, writes the column; returns the exit code."""
    column, matrix, label, rows = _make_column(args)
    counts = transition_counts(label[rows], column.label[rows], len(matrix))
    print(f"{printable(column.how)}\nfrom {args.parent!r}, {counts.sum()} labelled samples of {args.split}")
    print("\n".join(map(printable, describe(matrix, counts, column.class_names))))
    path = labels_path(args.dataset, column.name)
    if args.dry_run:
        print(f"dry run: {path} not written")
    elif path.exists() and not args.overwrite and _is_same(args.dataset, column):
        print(f"{path} holds these labels already")
    else:
        print(f"written: {write_labels(args.dataset, column)}")
    return 0


def describe(asked: Matrix, counts: Ints, class_names: Sequence[str]) -> list[str]:
    """Lines for people: asked-for and realised transition matrix in percent, rates and counts per class."""
    given, after = counts.sum(axis=1), counts.sum(axis=0)
    realised = counts / np.maximum(given, 1)[:, None]
    overall = (given * (1 - asked.diagonal())).sum() / counts.sum()
    wrong = 1 - counts.trace() / counts.sum()
    width = min(16, max(len(name) for name in class_names))
    names = [f"{number:>4} {name[:width]:<{width}}" for number, name in enumerate(class_names)]
    classes = np.arange(len(asked))
    lines = []
    if len(asked) <= SIDE_BY_SIDE:
        head = "".join(f"{number:4}" for number in classes)
        pad = " " * len(names[0])
        lines += [f"{pad}  {'asked for, %':<{len(head)}}   realised, %", f"{pad}{head}   {head}"]
        for i in classes:
            cells = [_percent(value) for value in asked[i]], [_percent(value) for value in realised[i]]
            lines.append(f"{names[i]}{''.join(cells[0])}  |{''.join(cells[1])}")
    else:
        classes = np.flatnonzero(asked.diagonal() < 1)
    lines.append(f"{'class':<{len(names[0])}}  {'before':>9} {'after':>9}  changed, asked for")
    for i in classes[: max(MAX_ROWS, SIDE_BY_SIDE)]:
        line = f"{names[i]}  {given[i]:9} {after[i]:9}  {1 - realised[i, i]:7.2%}  {1 - asked[i, i]:7.2%}"
        if len(asked) > SIDE_BY_SIDE:
            largest = [j for j in np.argsort(-asked[i], kind="stable")[:4] if j != i and asked[i, j] > 0][:3]
            line += "   to " + ", ".join(f"{j} {realised[i, j]:.2%} ({asked[i, j]:.2%})" for j in largest)
        lines.append(line if given[i] else f"{names[i]}  {0:9} {after[i]:9}  no samples")
    if len(classes) > max(MAX_ROWS, SIDE_BY_SIDE):
        lines.append(f"... and {len(classes) - max(MAX_ROWS, SIDE_BY_SIDE)} more flipped classes")
    lines.append(f"labels changed in all: {wrong:.2%}, asked for {overall:.2%}")
    return lines


def _percent(value: float) -> str:
    if value == 0:
        return "   ."
    return f"{value * 100:4.0f}" if value >= 0.0995 else f"{value * 100:4.1f}"


def _make_column(args: argparse.Namespace) -> tuple[LabelColumn, Matrix, Ints, Ints]:
    """The noisy column, its matrix, the labels it started from, and the rows that the noise was applied to."""
    marker = read_marker(args.dataset)
    target = labels_path(args.dataset, args.name)
    if args.name in (GIVEN_LABELS, args.parent):
        raise InputError(f"--name {args.name}: that would replace the labels noise starts from; choose another name")
    if args.rng_seed < 0:
        raise InputError(f"--rng-seed {args.rng_seed} is negative: give 0 or more")
    parent = read_labels(args.dataset, args.parent)
    parent.check_samples(args.dataset, marker["samples_sha256"])
    rows = _rows_of_split(args.dataset, marker, args.split, parent)
    matrix, options, details = _matrix(args, parent.class_names)
    label = parent.label.copy()
    label[rows] = draw_labels(parent.index[rows], parent.label[rows], matrix, args.rng_seed)
    command = ["data_prep", "noise", "DATASET", "--name", args.name, "--kind", args.kind, *options]
    command += ["--rng-seed", str(args.rng_seed), "--from", args.parent, "--split", args.split]
    column = LabelColumn(
        name=target.stem,
        index=parent.index,
        label=label,
        class_names=parent.class_names,
        how=shlex.join(command),
        rng_seed=args.rng_seed,
        parent=file_digest(labels_path(args.dataset, args.parent)),
        extra={
            "kind": args.kind,
            "rate": args.rate,
            **details,
            "from": args.parent,
            "split": args.split,
            # a Parquet file's metadata cannot be read beyond 100 MB, which 1,400 classes would fill
            "transition_matrix": matrix.tolist() if len(matrix) <= MAX_STORED else None,
            "transition_sha256": hashlib.sha256(matrix.astype("<f8").tobytes()).hexdigest(),
        },
    )
    return column, matrix, parent.label, rows


def _matrix(args: argparse.Namespace, class_names: Sequence[str]) -> tuple[Matrix, list[str], dict[str, Any]]:
    """The matrix that the arguments ask for, the arguments in one spelling, and facts worth keeping."""
    if args.kind not in KINDS:
        raise InputError(f"--kind {args.kind}: {nearest(args.kind, KINDS)}")
    for option, value, kind in (("--flips", args.flips, "asymmetric"), ("--matrix", args.matrix, "matrix")):
        if value is not None and args.kind != kind:
            raise InputError(f"{option} goes with --kind {kind}, not with --kind {args.kind}")
        if value is None and args.kind == kind:
            raise InputError(f"--kind {kind} needs {option}; see `python -m data_prep noise --help`")
    from_file = args.kind == "matrix" and args.matrix not in transitions.NAMES
    if from_file:
        if args.rate is not None:
            raise InputError(f"--rate {args.rate:g}: the rates are in the matrix already, leave --rate out")
        path = Path(args.matrix)
        matrix = transitions.read_matrix(path, len(class_names))
        return matrix, ["--matrix", path.name], {"matrix": path.name}
    if args.rate is None:
        raise InputError("--rate is missing: the probability, 0 to 1, that a label of a flipped class changes")
    rate = ["--rate", repr(transitions.check_rate(args.rate))]
    if args.kind == "symmetric":
        return transitions.symmetric(len(class_names), args.rate), rate, {}
    if args.kind == "matrix":
        matrix = transitions.named(args.matrix, class_names, args.rate)
        return matrix, ["--matrix", args.matrix, *rate], {"matrix": args.matrix}
    flips = transitions.parse_flips(args.flips, class_names)
    matrix = transitions.asymmetric(len(class_names), args.rate, flips)
    return matrix, ["--flips", args.flips, *rate], {"flips": [list(pair) for pair in flips]}


def _rows_of_split(dataset: Path, marker: dict[str, Any], split: str, column: LabelColumn) -> Ints:
    """Rows of the label column whose samples belong to the split and have a label."""
    samples = dataset / "samples.parquet"
    if not samples.exists() or file_digest(samples) != marker["samples_sha256"]:
        raise InputError(f"{samples} is missing or was changed: run `python -m data_prep verify {dataset}`")
    encoded = pq.read_table(samples, columns=["split"])["split"].cast(pa.string()).combine_chunks().dictionary_encode()
    present = encoded.dictionary.to_pylist()
    if split not in present:
        raise InputError(f"{dataset} has no split {split!r}; {nearest(split, present)}")
    inside = encoded.indices.to_numpy() == present.index(split)
    if column.index.size and not 0 <= column.index.min() <= column.index.max() < len(inside):
        raise InputError(f"label column {column.name!r} does not fit: run `python -m data_prep verify {dataset}`")
    rows = np.flatnonzero(inside[column.index] & (column.label != NO_LABEL)).astype(np.int64)
    if rows.size == 0:
        raise InputError(f"label column {column.name!r} has no labels for samples of {split}: choose another --split")
    return rows


def _is_same(dataset: Path, column: LabelColumn) -> bool:
    """Whether the column that is there already is this one.

    Raises:
        InputError: it is another one; says how that was made.
    """
    path = labels_path(dataset, column.name)
    remedy = "choose another --name, or add --overwrite to replace it"
    try:
        old = read_labels(dataset, column.name)
    except InputError as error:
        raise InputError(f"{path} exists and is damaged ({error}); add --overwrite to replace it") from error
    if (old.how, old.rng_seed, old.parent, old.extra) != (column.how, column.rng_seed, column.parent, column.extra):
        differs = "with another parent or matrix" if old.how == column.how else "in another way"
        raise InputError(f"{path} exists and was made {differs}: {old.how!r}; {remedy}")
    if not (np.array_equal(old.index, column.index) and np.array_equal(old.label, column.label)):
        raise InputError(f"{path} says that this command made it, but it holds other labels; {remedy}")
    return True
