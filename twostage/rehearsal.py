"""`--dry-run` of the verbs that read a configuration: everything is checked, nothing is done."""

from __future__ import annotations

from dataclasses import asdict

from twostage.config import Config
from twostage.data.schema import InputError
from twostage.report.runs import asked
from twostage.rows import folder_of, titles
from twostage.runtime import stage
from twostage.verbs import check_asked

NEEDS = {"rank": ("pretrain",), "mine": ("rank",), "train": ("mine",)}
"""what a verb by itself goes on from; `run` makes it"""


def rehearse(verb: str, config: Config) -> int:
    """Checks settings, dataset and network, and prints what the verb would do; returns the exit code.

    Raises:
        InputError: something is wrong that would stop the verb at once.
    """
    from twostage.data.dataset import Dataset
    from twostage.data.views import open_views
    from twostage.forecast.memory import measure

    folders = _folders(verb, config)
    _check_settings(config)
    views = open_views(Dataset.open(config.data.dataset), config.data, config.run.rng_seed)
    network = measure(config, views.num_classes)
    print(f"{config.data.dataset}: {views.num_classes} classes; trained on {len(views.train):,} images with the labels "
          f"{config.data.labels!r}, validated on {len(views.val):,}{' held out' if views.held_out else ''}, "
          f"tested on {len(views.test):,}")
    print(f"{config.model.name}: {network.parameters:,} parameters")
    for name in folders:
        print(f"  {name:32s} {_state(config, name)}")
    for name in NEEDS.get(verb, ()):
        if stage.read_inputs(config.run.dir / name / "done.json") is None:
            print(f"{verb} goes on from {name}, which is not done in {config.run.dir}: `twostage {name}` comes first")
    print("dry run: nothing was written; steps, memory and hours: twostage plan --config ...")
    return 0


def _folders(verb: str, config: Config) -> list[str]:
    """Stages and models that the verb would make."""
    if verb == "run":
        check_asked(config)
        return asked(asdict(config))
    if verb == "baselines":
        if not config.run.baselines:
            raise InputError("run.baselines names nothing to train")
        return [folder_of(name) for name in config.run.baselines]
    if verb == "evaluate":
        done = [name for name in titles() if (config.run.dir / name / "done.json").exists()]
        return [f"evaluate/{name}" for name in done]
    return [verb]


def _check_settings(config: Config) -> None:
    from twostage.runtime.trackers import check_tracker
    from twostage.stage1.mine import check_shares
    from twostage.stage2.methods import check_method

    check_tracker(config.runtime.tracker)
    mining = config.mine
    check_shares(min_score=mining.min_score, min_share=mining.min_share, accept_score=mining.accept_score)
    check_method(config.train)


def _state(config: Config, name: str) -> str:
    folder = config.run.dir / name
    if stage.read_inputs(folder / "done.json") is not None:
        return "is done"
    if stage.read_inputs(folder / "inputs.json") is not None:
        return "is begun, would go on"
    return "would be done"
