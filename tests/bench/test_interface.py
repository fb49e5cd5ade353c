"""The benchmark's own interface: what is measured, what is missing, and what the two files say."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench import peer, tables
from tests.bench.contest import Contest, Failed, Missing, Pass, Scale, Target, alternate


def test_sides_alternate_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str, seconds: list[float]) -> Pass:
        calls.append(name)
        return Pass(seconds[len(calls) // 2 if name == "ours" else (len(calls) - 1) // 2], mib=len(calls))

    contest = alternate(
        "t",
        unit="images/s",
        amount=100,
        sides={"ours": lambda: side("ours", [9, 1, 2, 4]), "theirs": lambda: side("theirs", [9, 8, 4, 2])},
        rounds=3,
    )
    assert calls == ["ours", "theirs"] * 4
    assert contest.rates == {"ours": [100, 50, 25], "theirs": [12.5, 25, 50]}
    assert contest.rate("ours") == 50
    assert contest.mib == {"ours": 7, "theirs": 8}


def test_a_side_that_says_nothing_is_timed_from_outside() -> None:
    contest = alternate("t", unit="x/s", amount=1, sides={"ours": lambda: time.sleep(0.05)}, rounds=1, warm_up=False)
    assert 10 < contest.rate("ours") <= 20


def test_targets() -> None:
    contest = Contest("t", "x/s", {"ours": [30.0], "a": [10.0], "b": [20.0]}, mib={"ours": 50.0, "a": 100.0, "b": 40.0})
    best = Target("best", against=("a", "b"), at_least=1.6)
    assert contest.found(best) == 1.5 and contest.met(best) is False
    assert contest.met(Target("rate", at_least=29)) is True and contest.met(Target("rate", at_least=31)) is False
    memory = Target("memory", against=("a", "b"), of="mib", at_most=1.0)
    assert contest.found(memory) == 1.25 and contest.met(memory) is False
    assert contest.met(Target("absent", against=("c",), at_least=1)) is None
    assert contest.met(Target("other side", ours="b", against=("a",), at_least=2)) is True


def broken() -> None:
    raise Failed("it ended with 1")


def some_contest(scale: Scale, folder: Path) -> object:
    (folder / "input").write_text("x")
    yield alternate(
        "counting",
        unit="images/s",
        amount=10,
        sides={"ours": lambda: Pass(1.0), "peer": lambda: Pass(2.0), "a": Missing("not installed"), "b": broken},
        rounds=scale.rounds,
        targets=[Target("≥ 3 × peer", against=("peer",), at_least=3), Target("≥ 1 × a", against=("a",), at_least=1)],
    )


def test_both_files_name_what_is_missing_and_what_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "COMPARISONS", {"counts": some_contest})
    arguments = ["--only", "counts", "--out", str(tmp_path / "o"), "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    command.main()
    assert [path.name for path in tmp_path.iterdir()] == ["o"], "inputs are removed"
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    assert found["versions"]["torch"] and found["hardware"]["cores"] >= 1 and found["commit"]
    (contest,) = found["comparisons"]["counts"]
    assert [(side["name"], side["median"], side["ours_over_it"]) for side in contest["sides"]] == [
        ("ours", 10, 1),
        ("peer", 5, 2),
    ]
    assert contest["missing"] == {"a": "not installed", "b": "it ended with 1"}
    assert [(target["met"], target["found"]) for target in contest["targets"]] == [(False, 2), (None, None)]
    text = (tmp_path / "o" / "results.md").read_text()
    printed = capsys.readouterr().out
    for line in (
        "| peer | 5 | 2.00 |  |",
        "| a | missing: not installed | | |",
        "| b | missing: it ended with 1 | | |",
        "- target ≥ 3 × peer: MISSED (2)",
        "- target ≥ 1 × a: not measured",
    ):
        assert line in text.splitlines() and line in printed.splitlines()


def test_an_unknown_comparison_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "plann"])
    with pytest.raises(SystemExit):
        command.main()
    assert "plann" in capsys.readouterr().err


PEER = """
import sys
from tests.bench.peer import serve
print("chatter of a package")
passes = []
def one_pass():
    passes.append(bytearray(50 << 20))
    if len(passes) > int(sys.argv[1]):
        raise OSError("the peer is broken")
serve(one_pass)
"""


def test_a_peer_is_a_process_of_its_own_and_says_how_it_ended(tmp_path: Path) -> None:
    (tmp_path / "chatty_peer.py").write_text(PEER)
    with peer.Peer("chatty_peer", 2, packages=tmp_path) as side:
        first, second = side(), side()
        assert 0 < first.seconds < 5 and second.mib and first.mib and second.mib - first.mib > 40
        with pytest.raises(Failed, match=r"chatty_peer ended with 1: .*the peer is broken"):
            side()


def test_a_peer_is_there_only_at_its_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "PINS", tmp_path / "pins")
    monkeypatch.setattr(peer, "PACKAGES", tmp_path / "packages")
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "thing.txt").write_text("thing==2\n")
    assert isinstance(peer.own_folder("thing"), Missing)
    (tmp_path / "packages" / "thing").mkdir(parents=True)
    (tmp_path / "packages" / "thing" / ".ready").write_text("thing==1\n")
    assert isinstance(peer.own_folder("thing"), Missing)
    (tmp_path / "packages" / "thing" / ".ready").write_text("thing==2\n")
    assert peer.own_folder("thing") == tmp_path / "packages" / "thing"
    assert tables.surroundings()["versions"]["python"]


def test_a_module_of_the_extra() -> None:
    assert peer.extra("json") is None
    assert "no_such_module is not installed" in peer.extra("no_such_module").why  # type: ignore[union-attr]
