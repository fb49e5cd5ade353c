"""The verb `plan`: says before anything is started how large a run will be, and how long it may take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Final

from twostage.cli import Parser, parse
from twostage.config import Config, TrainConfig
from twostage.data.schema import InputError, nearest
from twostage.forecast.memory import Memory, measure, memory_of
from twostage.forecast.stages import KINDS, Kind, Stage, stages_of

RECORDED: Final[dict[Kind, float]] = {"pretrain": 4726.0, "train": 2363.0, "rank": 11894.0}
"""images/s of one H200: ResNet-50, 224 pixels, bf16, from shards (configs/RECORDS.md); of `pretrain` not measured, but
twice that of the Π step, which puts each sample through the network twice"""
COMPILED: Final[dict[Kind, float]] = {"pretrain": 6652.0, "train": 3326.0, "rank": 11894.0}
"""the same with torch.compile"""
UNKNOWN: Final = "–"
EXAMPLES: Final = """\
examples:
  twostage plan --config configs/photos.yaml --data.dataset my_dataset
  twostage plan --config configs/clothing1m/row07.yaml --data.dataset data/clothing1m --nodes 2 --gpus 8
  twostage plan --config FILE --images-per-second pretrain=110,train=60,rank=400     a log's, divided by its processes
"""
COLUMNS: Final = ("stage", "passes", "steps a pass", "steps", "batch", "per process", "memory, GiB", "hours", "sees")


def plan(arguments: Sequence[str]) -> int:
    """Prints the forecast.

    Raises:
        InputError: an argument or setting is wrong, the dataset is not there, or a batch does not divide.
    """
    args, rest = make_parser().parse_known_args(list(arguments))
    for option, value in (("--nodes", args.nodes), ("--gpus", args.gpus)):
        if value < 1:
            raise InputError(f"{option} {value}: give 1 or more")
    given = parse_rates(args.images_per_second)
    if not rest:
        raise InputError("name a configuration: twostage plan --config FILE; see twostage plan --help")
    config = parse("plan", "", rest)
    print("\n".join(forecast(config, args.nodes * args.gpus, given, args.kept)))
    return 0


def parse_rates(text: str) -> dict[Kind, float]:
    """`train=2400,rank=11900` as numbers.

    Raises:
        InputError: not of this form, another kind, or not above 0.
    """
    rates: dict[Kind, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        if kind is None:
            raise InputError(f"--images-per-second {part}: {nearest(name, KINDS)}")
        try:
            rates[kind] = float(value)
        except ValueError:
            rates[kind] = 0.0
        if not 0 < rates[kind] < float("inf"):
            raise InputError(f"--images-per-second {part}: give a number above 0, such as {name}=2400")
    return rates


def recorded_rates(config: Config) -> Mapping[Kind, float]:
    """What was measured of this network, at this size and precision; empty where nothing was."""
    known = config.model.name == "resnet50" and config.augment.size == 224 and config.runtime.precision == "bf16"
    return {} if not known else RECORDED if config.runtime.compile == "no" else COMPILED


def seconds_of(stage: Stage, rates: Mapping[Kind, float], num_processes: int) -> float | None:
    """At most so long a stage takes when all processes are as fast as one; None where a rate is not known."""
    total = 0.0
    for kind, samples in ((stage.kind, stage.networks * stage.samples), ("rank", stage.validated)):
        if samples and kind not in rates:
            return None
        total += samples / rates[kind] if samples else 0.0
    return stage.passes * total / num_processes


def forecast(config: Config, num_processes: int, given: Mapping[Kind, float], kept: float) -> list[str]:
    """All lines that `plan` prints."""
    views, stages = stages_of(config, num_processes, kept)
    rates = {**recorded_rates(config), **given}
    network = measure(config, views.num_classes)
    splits = ", ".join(f"{count:,} {split}" for split, count in views.dataset.marker["splits"].items())
    lines = [
        f"{config.data.dataset}: {splits}; {views.num_classes} classes",
        f"trained on {len(views.train):,}, validated on {len(views.val):,}{' held out' if views.held_out else ''}, "
        f"tested on {len(views.test):,}",
        f"{config.model.name}: {network.parameters:,} parameters; {num_processes} process(es)",
        "",
    ]
    table: list[tuple[str, ...]] = [COLUMNS]
    details: list[str] = []
    total: float | None = 0.0
    for stage in stages:
        seconds = seconds_of(stage, rates, num_processes)
        total = None if total is None or seconds is None else total + seconds
        memory = None
        if stage.config is not None:
            memory = memory_of(
                config, stage.config, views.dataset, network.times(stage.networks),
                num_classes=views.num_classes, num_views=_views(stage), num_processes=num_processes,
            )  # fmt: skip
            details.append(f"  {stage.name}: {_parts(memory)}")
        table.append(_row(stage, num_processes, memory, seconds))
    lines += _aligned(table)
    lines += ["", "Passes and hours are upper bounds: training stops early where plateau.stop_after says so.", ""]
    lines += ["memory of each process, estimated, without the CUDA context and the allocator's slack:", *details, ""]
    return lines + _closing(total, stages, rates, given, config)


def _closing(
    total: float | None,
    stages: Sequence[Stage],
    rates: Mapping[Kind, float],
    given: Mapping[Kind, float],
    config: Config,
) -> list[str]:
    if total is None:
        needed = {stage.kind for stage in stages} | {"rank"}
        missing = [f"{kind}=…" for kind in KINDS if kind in needed and kind not in rates]
        return [
            f"hours: not known for {config.model.name} at {config.augment.size} pixels in {config.runtime.precision}; "
            "give images/s of one GPU, those in the log of a training divided by the number of its processes: "
            f"--images-per-second {','.join(missing)}"
        ]
    known = [kind for kind in KINDS if kind in rates]
    used = ", ".join(f"{kind} {rates[kind]:,.0f}{'' if kind in given else ' (recorded)'}" for kind in known)
    return [
        f"at most {total / 3600:.1f} hours in all, at these images/s of one process: {used}; several are taken to be "
        "as many times faster"
    ]


def _views(stage: Stage) -> int:
    return 2 if isinstance(stage.config, TrainConfig) and stage.config.method == "pi_model" else 1


def _row(stage: Stage, num_processes: int, memory: Memory | None, seconds: float | None) -> tuple[str, ...]:
    trains = stage.config is not None
    return (
        stage.name,
        str(stage.passes),
        f"{stage.steps:,}",
        f"{stage.passes * stage.steps:,}",
        f"{stage.batch_size if trains else stage.batch_size * num_processes:,}",
        f"{stage.batch_size // num_processes if trains else stage.batch_size:,}",
        UNKNOWN if memory is None else f"{memory.total / 2**30:.1f}{'+' if memory.activations is None else ''}",
        UNKNOWN if seconds is None else f"{seconds / 3600:.2f}",
        stage.views,
    )


def _parts(memory: Memory) -> str:
    named = {
        "weights": memory.weights,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "batches": memory.images,
        "tables": memory.tables,
        "decoded images": memory.cache,
    }
    return ", ".join(f"{name} {UNKNOWN if value is None else f'{value / 2**30:.2f}'}" for name, value in named.items())


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def make_parser() -> Parser:
    """The command line, without the fields of the configuration."""
    parser = Parser(
        prog="twostage plan",
        description="Say before anything is started: samples, steps and sub-epochs of each stage, batches per\n"
        "process, memory, and hours. Takes --config and the fields of `twostage run` as well.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (%(default)s)")
    parser.add_argument("--gpus", type=int, default=1, metavar="M", help="processes on each of them (%(default)s)")
    parser.add_argument(
        "--images-per-second", default="", metavar="KIND=RATE,...",
        help="of one GPU (a log has those of all processes together): pretrain (training, one augmentation of a "
        "sample), train (the Π step; a sample counts once), rank (scoring); default: what was recorded, for a "
        "ResNet-50 at 224 pixels in bf16 on an H200",
    )
    parser.add_argument(
        "--kept", type=float, default=0.25, metavar="SHARE",
        help="share of the labels that stage 1 keeps, while it has not been run (%(default)s)",
    )
    return parser
