"""`twostage predict`: what a trained network says about images, by class names; broken files are named, not fatal."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator

from twostage.cli import Parser
from twostage.data import plan
from twostage.data.dataset import Dataset
from twostage.data.loader import StreamedImages
from twostage.data.plan import Indices
from twostage.data.schema import InputError, nearest, write_aside, write_table
from twostage.machine_config import RuntimeConfig
from twostage.report.photos import Found, Header, as_dataset, find, inspect, name_of
from twostage.report.trained import WHICH_MODEL, Precision, Trained, open_trained
from twostage.runtime.evaluation import probabilities
from twostage.runtime.tracking import Count
from twostage.runtime.world import start

SOME_UNREADABLE: Final = 3
"""exit code where some images could not be read and the others were predicted"""
SHOWN: Final = 50
"""rows in the terminal"""
A_DATASET: Final = ("dataset.json", "samples.parquet", "shards/000000.tar")
DESCRIPTION: Final = """\
Say what is on images: the most probable classes by name. Images are resized and the centre is cut out as in
`twostage evaluate`, so the same image gets the same answer here as it does there.

MODEL is a run folder or a folder that `twostage export` wrote. PATHS are image files (JPEG, PNG, WebP) and
folders of them, or one dataset made by `data_prep build`. Files that cannot be read are listed with the reason."""
EXAMPLES: Final = """\
examples:
  twostage predict runs/first holiday/                          a folder, in the terminal
  twostage predict runs/first a.jpg b.png --top-k 5             the five most probable classes of each
  twostage predict runs/first holiday/ --out predicted.parquet  all rows as a table; .csv likewise
  twostage predict runs/first my_dataset --split val            a split of a dataset
  twostage predict exported/ holiday/                           by an exported model

exit codes: 0 all predicted; 1 the machine failed; 2 wrong input; 3 some files could not be read, the others are
predicted; 130 interrupted
"""


@dataclass(frozen=True)
class Predictions:
    """One row for each image that was asked for; rows without a prediction say why."""

    names: list[str]
    """paths as given; of a dataset, the keys"""
    index: Indices | None
    """(rows,) sample indices, of a dataset"""
    best: Indices
    """(rows, k) class numbers, the most probable first; -1 without a prediction"""
    probability: npt.NDArray[np.float32]
    """(rows, k)"""
    problems: dict[int, str]
    """row -> why there is no prediction"""

    def table(self, class_names: Sequence[str]) -> pa.Table:
        """Columns: path or index and key, predicted, probability, predicted_2, probability_2, ..., problem."""
        columns: dict[str, pa.Array] = {}
        if self.index is not None:
            columns["index"] = pa.array(self.index)
        columns["path" if self.index is None else "key"] = pa.array(self.names, pa.string())
        absent = self.best[:, 0] < 0 if len(self.best) else np.zeros(0, dtype=np.bool_)
        for place in range(self.best.shape[1]):
            ending = f"_{place + 1}" if place else ""
            numbers = pa.array(self.best[:, place], mask=absent)
            columns[f"predicted{ending}"] = pa.array(class_names, pa.string()).take(numbers)
            columns[f"probability{ending}"] = pa.array(self.probability[:, place], mask=absent)
        columns["problem"] = pa.array([self.problems.get(row) for row in range(len(self.names))], pa.string())
        return pa.table(columns)


@dataclass
class Forward:
    """The network on its device, and how many images go through it at once."""

    trained: Trained
    accelerator: Accelerator
    device: torch.device
    model: torch.nn.Module
    batch_size: int
    top_k: int

    def over(
        self, dataset: Dataset, view: Indices, tolerated: tuple[type[Exception], ...] = ()
    ) -> tuple[Indices, npt.NDArray[np.float32], list[int]]:
        """The most probable classes of a view: (rows, k) numbers and probabilities; and which rows could not be read.

        Raises:
            InputError: an image cannot be read or decoded, unless that is tolerated.
        """
        half = self.device.type == "cuda" and self.accelerator.mixed_precision != "no"
        augment, mean = self.trained.augment, self.trained.mean_image
        loader = StreamedImages(dataset, augment, self.trained.loader, self.device, half=half, mean_image=mean)
        best = np.full((len(view), self.top_k), -1, dtype=np.int64)
        probability = np.zeros((len(view), self.top_k), dtype=np.float32)
        failed: list[int] = []
        row, alone = 0, 0       # rows that are tried one by one, after a batch with them failed
        with Count("predict", len(view), "image") as count:
            while row < len(view):
                part = view[row : row + 1] if alone else view[row:]
                try:
                    batches = plan.fixed_batches(part, self.batch_size)
                    for index, probs in probabilities(self.model, loader, batches, self.accelerator):
                        rows = slice(row, row + len(index))
                        best[rows], probability[rows] = self._most_probable(probs.cpu().numpy())
                        row, alone = row + len(index), max(0, alone - len(index))
                        count.add(len(index))
                except tolerated:
                    if alone:
                        failed.append(row)
                        row, alone = row + 1, alone - 1
                    else:       # in this batch or, as reading goes ahead, in one of the next, which come here too then
                        alone = min(self.batch_size, len(view) - row)
        loader.close()
        return best, probability, failed

    def _most_probable(self, probs: npt.NDArray[np.float32]) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Of equal ones the smaller class number comes first, as argmax has it."""
        order = np.argsort(-probs, axis=1, kind="stable")[:, : self.top_k]
        return order, np.take_along_axis(probs, order, axis=1)


def open_forward(
    trained: Trained, *, device: Literal["auto", "cpu"] = "auto", batch_size: int = 256, top_k: int = 3
) -> Forward:
    """Puts the network on its device.

    Raises:
        InputError: the weights do not fit or are damaged, a number is out of range, or there is more than one process.
    """
    for name, value in (("--batch-size", batch_size), ("--top-k", top_k)):
        if value < 1:
            raise InputError(f"{name} {value}: must be at least 1")
    model = trained.network()
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    # fp16 is there on GPUs only; on a CPU the same weights go through in full precision
    precision: Precision = "fp32" if on_cpu and trained.precision == "fp16" else trained.precision
    accelerator, world = start(RuntimeConfig(device=device, precision=precision))
    if world.size > 1:
        raise InputError("twostage predict runs in one process: start it without a launcher, on a part of the images")
    model = model.to(memory_format=torch.channels_last)     # type: ignore[call-overload]
    top_k = min(top_k, len(trained.class_names))
    return Forward(trained, accelerator, world.device, model.to(world.device), batch_size, top_k)


def predict_files(forward: Forward, files: Sequence[Path]) -> Predictions:
    """Predicts image files; those that cannot be read have a problem instead."""
    trained = forward.trained
    problems: dict[int, str] = {}
    headers: dict[int, Header] = {}
    with Count("check", len(files), "file") as count:
        for row, found in enumerate(inspect(files, trained.augment, trained.loader.decode_threads)):
            count.add(1)
            if isinstance(found, str):
                problems[row] = found
            else:
                headers[row] = found
    best = np.full((len(files), forward.top_k), -1, dtype=np.int64)
    probability = np.zeros((len(files), forward.top_k), dtype=np.float32)
    if headers:
        rows = np.fromiter(headers, dtype=np.int64)
        with as_dataset([files[row] for row in rows], list(headers.values())) as dataset:
            view = np.arange(len(rows), dtype=np.int64)
            best[rows], probability[rows], failed = forward.over(dataset, view, (InputError, OSError))
        problems |= {int(rows[row]): "damaged, or changed meanwhile: it cannot be decoded" for row in failed}
    return Predictions([name_of(file) for file in files], None, best, probability, dict(sorted(problems.items())))


def predict_split(forward: Forward, dataset: Dataset, split: str) -> Predictions:
    """Predicts a split of a dataset.

    Raises:
        InputError: no such split, or an image in it cannot be read: a dataset is verified when it is built.
    """
    view = dataset.split_indices(split)
    best, probability, _ = forward.over(dataset, view)
    keys = pq.read_table(dataset.path / "samples.parquet", columns=["key"])["key"].take(pa.array(view)).to_pylist()
    return Predictions(keys, view, best, probability, {})


def predict(arguments: list[str]) -> int:
    """`twostage predict MODEL PATHS…`."""
    args = make_parser().read(arguments)
    _check_out(args.out)
    datasets = [path for path in args.paths if any((path / name).exists() for name in A_DATASET)]
    if datasets and len(args.paths) > 1:
        raise InputError(f"{datasets[0]} is a dataset: predict it by itself, without other paths")
    if args.split is not None and not datasets:
        raise InputError(f"--split {args.split}: only a dataset made by `data_prep build` has splits")
    dataset = Dataset.open(datasets[0]) if datasets else None
    split = args.split or "test"
    if dataset is not None:
        dataset.split_indices(split)            # before the network is loaded
    found = find(args.paths) if dataset is None else None
    trained = open_trained(args.model, args.name, own_code=args.own_code)
    if args.dry_run:
        print(_rehearsed(args, trained, split if dataset is not None else None, found))
        return 0
    forward = open_forward(trained, device=args.device, batch_size=args.batch_size, top_k=args.top_k)
    if dataset is not None:
        predictions = predict_split(forward, dataset, split)
    else:
        assert found is not None
        predictions = predict_files(forward, found.files)
    if args.out is not None:
        _write(predictions.table(trained.class_names), args.out)
    print(listing(predictions, trained.class_names, whole=args.out is None))
    if found is not None and found.passed_over:
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in found.passed_over.most_common(5))
        print(f"{found.passed_over.total():,} other files passed over ({_inert(kinds)})")
    print(f"predict: by {trained.name} of {args.model}" + (f", in {args.out}" if args.out is not None else ""))
    return SOME_UNREADABLE if predictions.problems else 0


def _rehearsed(args: argparse.Namespace, trained: Trained, split: str | None, found: Found | None) -> str:
    what = f"the split {split}" if found is None else f"{len(found.files):,} files"
    where = "the terminal" if args.out is None else str(args.out)
    return f"predict: would predict {what} by {trained.name} of {args.model}, into {where}"


def listing(predictions: Predictions, class_names: Sequence[str], *, whole: bool) -> str:
    """The first rows as aligned text, what cannot be read, and how often each class was predicted.

    `whole` says that nobody else keeps the problems, so that all are listed.
    """
    problems, best = predictions.problems, predictions.best
    rows = [row for row in range(len(predictions.names)) if row not in problems]
    shown = [[_inert(predictions.names[row])] for row in rows[:SHOWN]]
    for cells, row in zip(shown, rows, strict=False):
        guesses = zip(best[row], predictions.probability[row], strict=True)
        cells += [f"{_inert(class_names[number])} {share:.4f}" for number, share in guesses]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)] if shown else []
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(rows) > SHOWN:
        lines.append(f"… and {len(rows) - SHOWN:,} more" + ("; all of them: --out FILE.csv" if whole else ""))
    for row in list(problems)[: None if whole else SHOWN]:
        lines.append(f"cannot be read: {_inert(predictions.names[row])}: {_inert(problems[row])}")
    counts = Counter(best[rows, 0].tolist())
    told = ", ".join(f"{count:,} {_inert(class_names[c])}" for c, count in counts.most_common(10))
    told = f" ({told}{', …' if len(counts) > 10 else ''})" if told else ""
    lines.append(f"{len(rows):,} predicted{told}" + (f", {len(problems):,} cannot be read" if problems else ""))
    return "\n".join(lines)


def _inert(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: {nearest(out.suffix, ('.parquet', '.csv'))}")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: {'is a folder' if out.is_dir() else f'no folder {out.parent}: make it first'}")


def _write(table: pa.Table, out: Path) -> None:
    if out.suffix.lower() == ".parquet":
        write_table(out, table)
        return
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    write_aside(out, sink.getvalue().to_pybytes())


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="twostage predict",
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run folder or an exported folder")
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATHS", help="images and folders, or one dataset")
    parser.add_argument(
        "--model", dest="name", metavar="NAME",
        help=WHICH_MODEL,
    )
    parser.add_argument("--split", metavar="NAME", help="of a dataset (default: test)")
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="classes for each image (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="open the model, count the images, and do nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all rows into FILE.parquet or FILE.csv")
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="images at once; less needs less memory (%(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU where there is one")
    parser.add_argument(
        "--own-code", action="store_true", help="let an exported folder import the network that it names by import path"
    )
    return parser
