"""What would be noticed hours later, checked before the first step; `--dry-run` checks the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from twostage.baselines import has_output_norm
from twostage.config import CleanFilterConfig, Config, NoiseModelConfig, PretrainConfig, TrainConfig
from twostage.data.augment import NUM_CHANNELS, check_augment
from twostage.data.loader import check_loader
from twostage.data.plan import check_division, num_pieces
from twostage.data.schema import InputError, nearest
from twostage.data.views import Views, open_clean_set
from twostage.machine_config import RuntimeConfig
from twostage.models import build_model
from twostage.report.runs import asked
from twostage.rows import BY_FOLDER, CLEAN_FOLDERS, folder_of, titles
from twostage.runtime.ema import WeightAverage
from twostage.runtime.initial_weights import check_source
from twostage.runtime.limits import check_runtime
from twostage.runtime.optimizers import Plateau, make_optimizer
from twostage.stage1.mine import check_shares
from twostage.stage2.methods import check_method

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
ON_CLEAN_SET = ("clean_filter", *CLEAN_FOLDERS)


def stages_of(verb: str, config: Config) -> list[str]:
    """Folders of the stages and models that a verb would make, `evaluate/MODEL` for those it would test.

    Raises:
        InputError: it has nothing to do.
    """
    if verb == "run":
        if not (config.run.two_stage or config.run.baselines or config.run.finetune):
            raise InputError(
                "nothing to run: run.two_stage and run.finetune are false, and run.baselines names nothing"
            )
        return asked(asdict(config))
    if verb == "baselines":
        if not config.run.baselines:
            raise InputError("run.baselines names nothing to train")
        return [folder_of(name) for name in config.run.baselines]
    if verb == "evaluate":
        done = [name for name in titles() if (config.run.dir / name / "done.json").exists()]
        return [f"evaluate/{name}" for name in done]
    return [verb]


def check(config: Config, views: Views, stages: Sequence[str], num_processes: int = 1) -> None:
    """Checks every setting that the stages will read, and that all of them can begin.

    Args:
        stages: as `stages_of` gives them.

    Raises:
        InputError: a setting is out of range, or something that a stage goes on from will not be there; names it.
    """
    check_runtime(config.runtime)
    check_augment(config.augment)
    check_loader(config.loader)
    sections = _sections(stages)
    if "train" in sections:
        check_method(config.train)
        _check_perturbed(config, views.num_classes)
    if "pretrain" in sections and config.model.weights is not None:
        try:
            check_source(config.model.weights)
        except InputError as error:
            raise InputError(f"model.weights: {error}") from error
    for name in sections:
        _check_training(name, getattr(config, name), num_processes, config.runtime)
    if folder_of("bottom_up") in stages:
        _check_noise_layer(config.noise_model)
    if "rank" in stages:
        check_division(config.rank.batch_size, 1, section="rank.")
    if "mine" in stages:
        mining = config.mine
        check_shares(min_score=mining.min_score, min_share=mining.min_share, accept_score=mining.accept_score)
    joins = config.mine.rule == "clean_filter" and config.mine.add_clean_set
    if any(name in ON_CLEAN_SET or (name == "mine" and joins) for name in stages):
        open_clean_set(views, config.data, config.run.rng_seed)
    for name in stages:
        if name in BY_FOLDER:
            _check_baseline(config, name, stages)
    if "finetune" in stages:
        _check_start(config, finetune_weights(config), stages)


def finetune_weights(config: Config) -> Path:
    """The file that `finetune.init` names, whether it is there or not.

    Raises:
        InputError: no such model, or one that cannot be fine-tuned.
    """
    init = config.finetune.init
    if "/" in init:
        return Path(init)
    allowed = [name for name in titles() if name != "finetune" and not has_output_norm(name)]
    if has_output_norm(init):
        raise InputError(
            f"finetune.init {init!r}: that network has BatchNorm behind its outputs, as its loss needs; allowed: "
            f"{', '.join(allowed)}, or the path of a file (with a '/')"
        )
    if init not in allowed:
        raise InputError(f"finetune.init {init!r}: {nearest(init, allowed)}, or the path of a file (with a '/')")
    return config.run.dir / init / "model.safetensors"


def _sections(stages: Sequence[str]) -> list[str]:
    """Names of the configuration's sections by which the stages train."""
    found = []
    for name in stages:
        row = BY_FOLDER.get(name)
        if row is not None:
            found.append("noise_model" if row.noise_model else "train" if row.stage2 else "pretrain")
        elif name in ("pretrain", "clean_filter", "train", "finetune"):
            found.append(name)
    return list(dict.fromkeys(found))


def _check_training(
    name: str, section: PretrainConfig | TrainConfig, num_processes: int, runtime: RuntimeConfig
) -> None:
    passes = "sub_epochs" if isinstance(section, TrainConfig) else "epochs"
    if getattr(section, passes) < 1:
        raise InputError(f"{name}.{passes} is {getattr(section, passes)}; it must be at least 1")
    halves = name in ("train", "noise_model")
    pieces = num_pieces(section.batch_size, num_processes, runtime.micro_batch, halves=halves, section=f"{name}.")
    if pieces > 1 and runtime.compile in CUDA_GRAPHS:
        raise InputError(
            f"runtime.compile: {runtime.compile} replays CUDA graphs, in which a piece's gradients are lost to the "
            f"next; with runtime.micro_batch: {runtime.micro_batch} a step of `{name}` has {pieces} pieces: use "
            "runtime.compile: default"
        )
    if isinstance(section, CleanFilterConfig) and not 0 < section.positive_weight < math.inf:
        raise InputError(f"{name}.positive_weight is {section.positive_weight}; it must be a number above 0")
    try:
        Plateau(section.plateau)
        make_optimizer(nn.Linear(1, 1), section.optimizer)
    except InputError as error:
        raise InputError(f"{name}.{error}") from error


def _check_perturbed(config: Config, num_classes: int) -> None:
    """Stage 2 may have dropout and noise of its own, for which the network must have a place."""
    train, model = config.train, config.model
    if train.ema_decay is not None:
        try:
            WeightAverage(nn.Linear(1, 1), train.ema_decay)
        except InputError as error:
            raise InputError(f"train.{error}") from error
    if train.dropout is None and train.input_noise is None:
        return
    try:
        build_model(
            model.name,
            num_classes=num_classes,
            in_channels=NUM_CHANNELS[config.augment.channels],
            image_size=config.augment.size,
            dropout=model.dropout if train.dropout is None else train.dropout,
            input_noise=model.input_noise if train.input_noise is None else train.input_noise,
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"model.name with train.dropout and train.input_noise: {error}") from error


def _check_noise_layer(section: NoiseModelConfig) -> None:
    held, epochs = section.held_epochs, section.epochs
    if not 0 <= held < epochs:
        raise InputError(
            f"noise_model.held_epochs is {held}; it must be at least 0 and below noise_model.epochs, {epochs}, or the "
            "noise layer of bottom_up learns nothing"
        )
    if not 0 <= section.penalty_weight < math.inf:
        raise InputError(f"noise_model.penalty_weight is {section.penalty_weight}; it must be a number of at least 0")


def _check_baseline(config: Config, name: str, stages: Sequence[str]) -> None:
    row, run_dir = BY_FOLDER[name], config.run.dir
    refined, mined = run_dir / "mine" / "val.parquet", run_dir / "mine" / "done.json"
    labeled = row.stage2 is not None and name not in ON_CLEAN_SET
    if (labeled or row.refined_val) and "mine" not in stages and not mined.exists():
        raise InputError(
            f"{name} goes on from {run_dir / 'mine'}, which is not done: run `twostage pretrain`, `rank` and `mine` "
            "first, or set run.two_stage: true"
        )
    if row.refined_val and not refined.exists() and (config.data.holdout is None or not config.mine.refine_val):
        raise InputError(
            f"{name} validates on the held-out samples that stage 1 keeps: set data.holdout and mine.refine_val: true, "
            f"in a run.dir of its own if {run_dir} has been begun without"
        )
    if row.stage2 is not None and config.train.init == "stage1":
        _check_start(config, run_dir / "pretrain" / "model.safetensors", stages, "train.init: stage1")


def _check_start(config: Config, weights: Path, stages: Sequence[str], named_by: str = "") -> None:
    """That weights are there, or that a stage of this run is going to make them."""
    made = [config.run.dir / name / "model.safetensors" for name in stages]
    if weights not in made and not weights.is_file():
        instead = ", or set train.init: scratch" if named_by else ""
        named_by = named_by or f"finetune.init {config.finetune.init!r}"
        raise InputError(f"{named_by}: {weights} does not exist; train that network first{instead}")
