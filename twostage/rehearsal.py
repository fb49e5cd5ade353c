"""`--dry-run` of the verbs that read a configuration: everything is checked, nothing is done."""

from __future__ import annotations

from dataclasses import asdict

from twostage.config import Config
from twostage.runtime import stage

NEEDS = {"rank": ("pretrain",), "mine": ("rank",), "train": ("mine",)}
"""what a verb by itself goes on from; `run` makes it"""

SETTINGS_AS_GIVEN = ("pretrain", "clean_filter", "rank", "mine", "train")
"""stages that note the fields of the configuration as they are; the others note some of their own"""


def rehearse(verb: str, config: Config) -> int:
    """Checks settings, dataset and network, and prints what the verb would do; returns the exit code.

    Raises:
        InputError: something is wrong that would stop the verb at once.
    """
    from twostage.checks import check, stages_of
    from twostage.data.dataset import Dataset
    from twostage.data.views import open_views
    from twostage.forecast.memory import measure
    from twostage.runtime.session import flat
    from twostage.runtime.trackers import check_tracker

    folders = stages_of(verb, config)
    check_tracker(config.runtime.tracker)
    views = open_views(Dataset.open(config.data.dataset), config.data, config.run.rng_seed)
    check(config, views, folders)
    settings = {**flat(asdict(config)), **views.digests}
    for name in (name for name in folders if name in SETTINGS_AS_GIVEN):
        stage.check_same(config.run.dir / name, settings)
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


def _state(config: Config, name: str) -> str:
    folder = config.run.dir / name
    if stage.read_inputs(folder / "done.json") is not None:
        return "is done"
    if stage.read_inputs(folder / "inputs.json") is not None:
        return "is begun, would go on"
    return "would be done"
