"""Trains the rows of the paper's Tables 3 and 4 that a run is compared with, each in its own folder of the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from twostage.config import TrainConfig
from twostage.data.plan import Indices
from twostage.data.schema import InputError, write_json, write_table
from twostage.data.views import open_clean_set
from twostage.rows import ALL_BASELINES, BASELINES, OWN_WEIGHTS, WITH_CLEAN_SET, Baseline, BaselineName, folder_of
from twostage.runtime.session import Session
from twostage.runtime.world import barrier
from twostage.stage1 import noise_models
from twostage.stage1.estimate import estimate_from_ranking
from twostage.stage1.methods import CORRECTED, OUTPUT_NORM
from twostage.stage1.pretrain import Variant, pretrain
from twostage.stage1.rank import rank
from twostage.stage2.train import train

RANKED: BaselineName = "cross_entropy"
"""the network whose ranking the loss corrections are estimated from"""


def train_baselines(session: Session) -> None:
    """Trains those that `run.baselines` names and that are not done yet; stage 1 is done where they need it.

    Raises:
        InputError: as the stages do; or the estimated transition matrix cannot be used.
    """
    for name in session.config.run.baselines:
        _train_one(session, name)


def second_stage(config: TrainConfig, row: Baseline) -> TrainConfig:
    """Stage 2's settings for a baseline. A weight is right for one method: another method comes with its authors'."""
    if row.stage2 is None or row.stage2 == config.method:
        return config
    weight, reduction = OWN_WEIGHTS[row.stage2]
    return dataclasses.replace(config, method=row.stage2, consistency_weight=weight, reduction=reduction)


def has_output_norm(folder_name: str) -> bool:
    """Whether the network in this folder of a run has BatchNorm behind its outputs."""
    return any(folder_name == folder_of(name) and row.loss in OUTPUT_NORM for name, row in BASELINES.items())


def _train_one(session: Session, name: BaselineName) -> None:
    row, folder, run_dir = ALL_BASELINES[name], session.run_dir / folder_of(name), session.run_dir
    if row.noise_model is not None:
        noise_models.train(session, folder, session.config.noise_model, row.noise_model)
        return
    if row.stage2 is not None:
        config = second_stage(session.config.train, row)
        labeled = _clean_seeds(session) if name in WITH_CLEAN_SET else run_dir / "mine"
        train(session, folder, config, labeled, run_dir / "pretrain" / "model.safetensors")
        return
    supervised = dataclasses.replace(session.config.pretrain, balance=row.balance)
    stage1 = run_dir / "pretrain"
    if name == "balanced_cross_entropy" and session.config.pretrain.balance and (stage1 / "done.json").exists():
        session.say(f"{name}: is the network of stage 1, in {stage1}")
        return
    variant = Variant(loss=row.loss)
    if row.loss in CORRECTED:
        variant = dataclasses.replace(variant, transition=_transition(session, folder))
    if row.refined_val:
        variant = dataclasses.replace(variant, val=_refined_val(run_dir / "mine"))
    try:
        pretrain(session, folder, supervised, variant)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{folder}: {error}") from error


def _clean_seeds(session: Session) -> Path:
    """Folder with the clean set as the seed set, as `mine` writes it: none of the noisy labels is kept."""
    folder, world = session.run_dir / "clean_seeds", session.world
    clean_set = open_clean_set(session.views, session.config.data, session.config.run.rng_seed)
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        index = clean_set.train
        write_table(folder / "seeds.parquet", pa.table({"index": index, "label": clean_set.labels[index]}))
        if session.config.data.holdout is not None:     # else the run's own validation split, whose labels are right
            val = clean_set.val
            write_table(folder / "val.parquet", pa.table({"index": val, "label": clean_set.labels[val]}))
        write_json(folder / "done.json", {"inputs": {**session.views.digests}, "results": {"kept": len(index)}})
    barrier(world)
    return folder


def _transition(session: Session, folder: Path) -> torch.Tensor:
    """Estimated by the cross-entropy network, which is trained and ranks all samples first, unless it has already."""
    _train_one(session, RANKED)
    rank_dir = session.run_dir / f"rank_{RANKED}"
    rank(session, rank_dir, session.run_dir / folder_of(RANKED))
    mode, world = session.config.run.transition_mode, session.world
    transition = estimate_from_ranking(rank_dir, folder, mode=mode, write=world.is_main)
    barrier(world)
    return transition


def _refined_val(mined: Path) -> Indices:
    refined = mined / "val.parquet"
    if not refined.exists():
        raise InputError(
            f"the baseline improved_baseline needs {refined}: set data.holdout and mine.refine_val, delete {mined} and "
            "run again"
        )
    view: Indices = pq.read_table(refined, columns=["index"])["index"].to_numpy()
    return view
