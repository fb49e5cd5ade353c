from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from twostage.config import PretrainConfig
from twostage.data.schema import InputError
from twostage.runtime import stage

INPUTS = {"dataset.samples": "aa", "dataset.labels.given": "bb", "train.lr": 0.1, "augment.mean": (0.5, 0.5)}


def test_begin_finish_done(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "train"
    assert not stage.done(folder, INPUTS)
    stage.begin(folder, INPUTS)
    assert not stage.done(folder, INPUTS)
    stage.begin(folder, INPUTS)
    stage.finish(folder, INPUTS, {"accuracy": 0.5})
    assert stage.done(folder, INPUTS)
    assert stage.read_results(folder / "done.json") == {"accuracy": 0.5}
    assert json.loads((folder / "done.json").read_text())["inputs"]["augment.mean"] == [0.5, 0.5]


def test_all_ranks_wait_until_they_see_what_rank_0_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the run folder is on a network file system that is behind, or is not the same on all machines."""
    for name in ("train", "rank"):
        stage.begin(tmp_path / name, INPUTS)
    stage.finish(tmp_path / "train", {**INPUTS, "train.lr": 0.2}, {})
    late = threading.Timer(0.3, stage.finish, (tmp_path / "train", INPUTS, {}))
    late.start()
    stage.see(tmp_path / "train", INPUTS)
    assert stage.done(tmp_path / "train", INPUTS)
    stage.see(tmp_path / "train")
    late.join()
    monkeypatch.setattr(stage, "SEE_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"has not seen it for 0.2 s: run\.dir must be the same folder"):
        stage.see(tmp_path / "rank")
    monkeypatch.setattr(stage, "SEE_SECONDS", 60)
    monkeypatch.setattr(stage, "SAY_SECONDS", 0.1)
    late = threading.Timer(0.6, stage.finish, (tmp_path / "rank", INPUTS, {}))
    late.start()
    stage.see(tmp_path / "rank", INPUTS)
    late.join()
    assert f"waiting to see {tmp_path / 'rank' / 'done.json'}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["begun", "finished"])
def test_other_inputs_are_refused(tmp_path: Path, verb: str) -> None:
    folder = tmp_path / "train"
    stage.begin(folder, INPUTS)
    (folder / "checkpoints").mkdir()
    if verb == "finished":
        stage.finish(folder, INPUTS, {})
    check = stage.begin if verb == "begun" else stage.done
    other = {**INPUTS, "train.lr": 0.2, "train.new": None}
    del other["dataset.samples"]
    with pytest.raises(InputError) as caught:
        check(folder, other)
    message = str(caught.value)
    assert f"train was {verb} with other inputs" in message
    assert 'dataset.samples: "aa" -> (absent)' in message
    assert "train.lr: 0.1 -> 0.2" in message and "train.new: (absent) -> null" in message
    assert "labels" not in message and "mean" not in message, "only what differs"
    assert "another run.dir" in message and f"delete {folder}" in message and "\n" not in message
    with pytest.raises(InputError, match=rf'the dataset changed since .*train was {verb}.*given: "bb" -> "b2"'):
        check(folder, {**INPUTS, "dataset.labels.given": "b2"})
    assert (folder / "done.json").exists() == (verb == "finished")
    check(folder, INPUTS)


def test_where_nothing_was_computed_it_is_begun_anew(tmp_path: Path) -> None:
    """Settings that were refused after it was begun must not stand in the way of those that are right."""
    stage.begin(tmp_path, INPUTS)
    stage.begin(tmp_path, {**INPUTS, "train.lr": 0.2})
    recorded = stage.read_inputs(tmp_path / "inputs.json")
    assert recorded is not None and recorded["train.lr"] == 0.2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"inputs": 3}', "{}"])
def test_a_damaged_marker_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "done.json").write_text(content)
    with pytest.raises(InputError, match=r"done\.json is damaged .*delete the folder"):
        stage.done(tmp_path, INPUTS)


def test_plain() -> None:
    @dataclass(frozen=True)
    class Inner:
        where: Path = Path("a/b")

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = field(default_factory=Inner)
        sizes: tuple[int, ...] = (1, 2)

    assert stage.plain(Outer(), "outer.") == {"outer.inner.where": "a/b", "outer.sizes": [1, 2]}
    flat = stage.plain(PretrainConfig(), "pretrain.")
    assert flat["pretrain.optimizer.name"] == "adam" and flat["pretrain.plateau.stop_after"] is None
    assert json.loads(json.dumps(flat)) == flat


def test_environment_is_plain_json() -> None:
    facts = stage.environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["packages"].keys() >= {"torch", "accelerate", "numpy", "pyarrow", "twostage"}
    assert any(name.startswith("nvidia-dali") for name in facts["packages"])
    assert facts["python"] == sys.version.split()[0] and facts["cpu_cores"] >= 1


def test_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from twostage.runtime import stage; "
        "stage.begin(Path('t'), {}); stage.finish(Path('t'), {}, {}); assert stage.done(Path('t'), {}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
