"""One function per verb of the command line: which stage reads and writes which folder of the run.

Modules that need torch are imported inside the functions, so that `mine` starts without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.config import Config
from twostage.data.schema import InputError, file_digest, write_json
from twostage.rows import titles
from twostage.runtime import record, stage

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.data.plan import Indices
    from twostage.runtime.session import Session

def pretrain(config: Config) -> int:
    """Stage 1, first step: train on the noisy labels."""
    session = _open(config, "pretrain")
    _pretrain(session)
    session.say(f"pretrain: weights in {config.run.dir / 'pretrain' / 'model.safetensors'}; next: `twostage rank`")
    return 0


def clean_filter(config: Config) -> int:
    """Stage 1 with a clean set: train a classifier per class, for `mine.rule: clean_filter`."""
    session = _open(config, "clean_filter")
    _clean_filter(session)
    session.say(f"clean_filter: weights in {config.run.dir / 'clean_filter'}; next: `twostage rank`")
    return 0


def rank(config: Config) -> int:
    """Stage 1, second step: score every sample."""
    session = _open(config, "rank")
    _rank(session)
    session.say(f"rank: scores in {config.run.dir / 'rank'}; next: `twostage mine`")
    return 0


def mine(config: Config) -> int:
    """Stage 1, third step: keep the labels that are very likely right. Needs no torch."""
    _mine(config)
    record.write_config(config, trains=False)
    print(f"mine: kept labels in {config.run.dir / 'mine' / 'seeds.parquet'}; next: `twostage train`")
    return 0


def train(config: Config) -> int:
    """Stage 2: train on with all images and the kept labels."""
    session = _open(config, "train")
    _train(session)
    session.say(f"train: weights in {config.run.dir / 'train' / 'model.safetensors'}; next: `twostage evaluate`")
    return 0


def finetune(config: Config) -> int:
    """At the end: fine-tune on the clean set."""
    session = _open(config, "finetune")
    _finetune(session)
    session.say(f"finetune: weights in {config.run.dir / 'finetune' / 'model.safetensors'}; next: `twostage evaluate`")
    return 0


def baselines(config: Config) -> int:
    """Train what `run.baselines` names, for comparison; stage 1 is done where they go on from it."""
    session = _open(config, "baselines")
    _baselines(session)
    session.say(f"baselines: in {config.run.dir / 'baseline_*'}; next: `twostage evaluate`")
    return 0


def evaluate(config: Config) -> int:
    """Test every trained model of the run; then the report."""
    session = _open(config, "evaluate")
    if not _evaluate(session):
        raise InputError(f"{config.run.dir} holds no trained model: run `twostage pretrain` or `twostage run` first")
    if session.world.is_main:
        _summarise(config)
    return 0


def run(config: Config) -> int:
    """The whole method: pretrain, rank, mine, train, evaluate; then the report."""
    session = _open(config, "run")
    if config.run.two_stage:
        _two_stages(session)
    _baselines(session)
    if config.run.finetune:
        _finetune(session)
    _evaluate(session)
    if session.world.is_main:
        _summarise(config)
    return 0


VERBS: dict[str, Callable[[Config], int]] = {
    function.__name__: function
    for function in (pretrain, clean_filter, rank, mine, train, finetune, baselines, evaluate, run)
}


def _two_stages(session: Session) -> None:
    by_classifiers = session.config.mine.rule == "clean_filter"
    if session.config.train.init == "stage1" or not by_classifiers:
        _pretrain(session)
    if by_classifiers:
        _clean_filter(session)
    _rank(session)
    _on_main(session, lambda: _mine(session.config))
    stage.see(session.run_dir / "mine")
    _train(session)


def _open(config: Config, verb: str) -> Session:
    from twostage.checks import check, stages_of
    from twostage.runtime import run_folder, status
    from twostage.runtime.session import open_session

    stages = stages_of(verb, config)
    session = open_session(config)
    check(config, session.views, stages, session.world.size)
    if session.world.is_main:
        run_folder.occupy(config.run.dir, verb)
        record.write_config(config, trains=verb != "evaluate")
        record.write_environment(config.run.dir)
        status.keep_failed(config.run.dir, "running", verb)
    session.say(
        f"{config.run.dir}: {session.world.size} process(es) on {session.world.device}, images by {session.loader.kind}"
    )
    return session


def _pretrain(session: Session) -> None:
    from twostage.stage1.pretrain import pretrain

    pretrain(session, session.run_dir / "pretrain", session.config.pretrain)


def _clean_filter(session: Session) -> None:
    from twostage.stage1.classifiers import train_classifiers

    train_classifiers(session, session.run_dir / "clean_filter")


def _rank(session: Session) -> None:
    from twostage.stage1.rank import rank

    by_classifiers = session.config.mine.rule == "clean_filter"
    trained = session.run_dir / ("clean_filter" if by_classifiers else "pretrain")
    if not (trained / "done.json").exists():
        raise InputError(f"{trained} holds no trained network: run `twostage {trained.name}` first")
    rank(session, session.run_dir / "rank", trained, per_class=by_classifiers)


def _mine(config: Config) -> None:
    from twostage.data.dataset import Dataset
    from twostage.stage1.mine import mine

    rank_dir, folder = config.run.dir / "rank", config.run.dir / "mine"
    if not (rank_dir / "done.json").exists():
        raise InputError(f"{rank_dir} holds no complete ranking: run `twostage rank` first")
    by_classifiers = config.mine.rule == "clean_filter"
    if by_classifiers != (stage.read_inputs(rank_dir / "done.json") or {}).get("per_class", False):
        raise InputError(
            f"mine.rule is {config.mine.rule}, but {rank_dir} was made for the other: delete it and run `twostage rank`"
        )
    dataset = Dataset.open(config.data.dataset)
    labels = dataset.labels(config.data.labels)
    stage.check_dataset(rank_dir, dataset.digests(config.data.labels))
    known = config.data.clean_labels
    clean = None if known is None else dataset.labels(known).dense(len(dataset))
    inputs = {
        **stage.plain(config.mine, "mine."),
        **{part.name: file_digest(part) for part in sorted(rank_dir.glob("part-*.parquet"))},
        "clean_labels": None if known is None else dataset.labels_digest(known),
    }
    clean_set = None
    if by_classifiers and config.mine.add_clean_set:
        clean_set, joined = _clean_samples(dataset, config)
        inputs |= joined
    if stage.done(folder, inputs):
        print("mine: already done")
        return
    stage.begin(folder, inputs)
    table, results = mine(
        rank_dir, folder, class_names=labels.class_names, config=config.mine, clean=clean, clean_set=clean_set
    )
    stage.finish(folder, inputs, results)
    print(table)


def _clean_samples(dataset: Dataset, config: Config) -> tuple[tuple[Indices, Indices], dict[str, Any]]:
    """Indices and labels of the clean set, as far as it is trained on; and what identifies them."""
    from twostage.data.views import open_clean_set, open_views

    views = open_views(dataset, config.data, config.run.rng_seed)
    clean_set = open_clean_set(views, config.data, config.run.rng_seed)
    holdout = {"data.holdout": config.data.holdout, "run.rng_seed": config.run.rng_seed}
    identity = {**views.digests, "data.clean_split": config.data.clean_split, **holdout}
    return (clean_set.train, clean_set.labels[clean_set.train]), identity


def _train(session: Session) -> None:
    from twostage.stage2.train import train

    run_dir = session.run_dir
    train(
        session, run_dir / "train", session.config.train, run_dir / "mine", run_dir / "pretrain" / "model.safetensors"
    )


def _finetune(session: Session) -> None:
    from twostage.checks import finetune_weights
    from twostage.stage2.finetune import finetune

    finetune(session, session.run_dir / "finetune", finetune_weights(session.config))


def _baselines(session: Session) -> None:
    if session.config.run.baselines:
        from twostage.baselines import train_baselines

        train_baselines(session)


def _evaluate(session: Session) -> dict[str, Any]:
    from twostage.baselines import has_output_norm
    from twostage.runtime.evaluation import evaluate
    from twostage.runtime.preemption import leave_if_asked

    results: dict[str, Any] = {}
    for name, title in _titles(session.config).items():
        folder = session.run_dir / name
        if not (folder / "done.json").exists():
            continue
        leave_if_asked(folder, None, session.world)
        if not len(session.views.test):
            results[name] = _validated(folder)
            session.say(f"{title:46s} {100 * results[name]['val_accuracy']:6.2f} % of the validation labels met")
        else:
            results[name] = evaluate(
                session,
                session.run_dir / "evaluate" / name,
                folder / "model.safetensors",
                output_norm=has_output_norm(name),
            )
            session.say(f"{title:46s} {100 * results[name]['accuracy']:6.2f} % of the test images right")
    if results and not len(session.views.test):
        session.say("no test images: the dataset has no split `test`; validation labels may be as noisy as the others")
    return results


def _validated(folder: Path) -> dict[str, float]:
    """The validation accuracy of a model's weights."""
    results = json.loads((folder / "done.json").read_text())["results"]
    return {"val_accuracy": results["val_accuracy"]}


def _on_main(session: Session, action: Callable[[], None]) -> None:
    """Does something on the main process while the others wait; when it fails there, it fails on all."""
    from twostage.runtime.world import gather_strings

    problem: Exception | None = None
    if session.world.is_main:
        try:
            action()
        except (InputError, OSError) as error:
            problem = error
    failed = gather_strings("" if problem is None else str(problem), session.world)[0]
    if problem is not None:
        raise problem
    if failed:
        raise InputError(failed)


def _titles(config: Config) -> dict[str, str]:
    """As `titles`, by what stage 1 was trained with."""
    noted = stage.read_inputs(config.run.dir / "pretrain" / "done.json") or {}
    return titles(noted.get("pretrain.balance", config.pretrain.balance))


def _summarise(config: Config) -> None:
    from twostage.report.html import write_report

    run_dir = config.run.dir
    summary: dict[str, Any] = {"models": {}}
    for name, title in ((n, t) for n, t in _titles(config).items() if (run_dir / n / "done.json").exists()):
        figures = run_dir / "evaluate" / name / "test.json"
        if figures.exists():
            accuracy = json.loads(figures.read_text())["accuracy"]
            summary["models"][name] = {"title": title, "test_accuracy": accuracy}
        else:
            summary["models"][name] = {"title": title, **_validated(run_dir / name)}
    if (run_dir / "mine" / "done.json").exists():
        summary["seeds"] = json.loads((run_dir / "mine" / "done.json").read_text())["results"]
        print(_seeds_line(summary["seeds"]))
    write_json(run_dir / "summary.json", summary)
    page = write_report(run_dir)
    print(f"summary: {run_dir / 'summary.json'}\nreport:  {page}")


def _seeds_line(seeds: dict[str, Any]) -> str:
    line = f"seeds:   {seeds['kept']} of {seeds['images']} labels kept"
    return line if seeds["purity"] is None else f"{line}, {100 * seeds['purity']:.2f} % of them right"
