"""The scheduler: order, failures, locks, signals."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from twostage.data.schema import InputError
from twostage.reproduce.jobs import Job, Outcome, StoppedError, last_error, run_jobs


def shell(folder: Path, name: str, *scripts: str, after: str | None = None, result: str | None = None) -> Job:
    """A job of shell commands; done once its result (by default a file of its name) is there."""
    wanted = folder / (result or name)
    commands = [("sh", "-c", script) for script in scripts]
    return Job(name, commands, folder / "logs" / f"{name}.log", done=wanted.exists, after=after)


def run(jobs: Sequence[Job], num_parallel: int = 2, grace: float = 5.0) -> tuple[dict[str, Outcome], list[str]]:
    said: list[str] = []
    outcomes = run_jobs(
        jobs, num_parallel=num_parallel, environment=lambda slot: {**os.environ, "SLOT": str(slot)},
        say=said.append, ended=lambda outcome: said.append(f"{outcome.name}: ended"), grace=grace,
    )
    assert [outcome.name for outcome in outcomes] == [job.name for job in jobs]
    return {outcome.name: outcome for outcome in outcomes}, said


def test_commands_in_order_and_only_what_is_missing(tmp_path: Path) -> None:
    jobs = [shell(tmp_path, "a", f"echo one >> {tmp_path}/work", f"echo two >> {tmp_path}/work; touch {tmp_path}/a")]
    outcomes, said = run(jobs)
    assert outcomes["a"].code == 0 and outcomes["a"].seconds > 0
    assert (tmp_path / "work").read_text() == "one\ntwo\n" and said == ["a: begun", "a: ended"]
    outcomes, said = run(jobs)
    assert (tmp_path / "work").read_text() == "one\ntwo\n" and said == ["a: ended"]
    assert outcomes["a"] == Outcome("a", 0)


def test_a_failure_stops_neither_the_others_nor_hides_its_reason(tmp_path: Path) -> None:
    jobs = [
        shell(tmp_path, "bad", "echo 'error: no room'; echo bye; exit 3", f"touch {tmp_path}/bad"),
        shell(tmp_path, "killed", "echo last words; kill -9 $$"),
        shell(tmp_path, "nothing", "true"),
        shell(tmp_path, "absent", "/no/such/program"),
        shell(tmp_path, "good", f"touch {tmp_path}/good"),
        shell(tmp_path, "next", f"touch {tmp_path}/next", after="bad"),
        shell(tmp_path, "fine", f"test -e {tmp_path}/good && touch {tmp_path}/fine", after="good"),
    ]
    outcomes, _ = run(jobs)
    assert (outcomes["bad"].code, outcomes["bad"].error) == (3, "error: no room")
    assert outcomes["killed"].code == -9 and outcomes["killed"].error == "killed by SIGKILL, after: last words"
    assert outcomes["nothing"].code == 1 and "results are missing" in outcomes["nothing"].error
    assert outcomes["absent"].code == 127 and "no/such/program" in outcomes["absent"].error
    assert outcomes["next"].error == "needs bad, which failed" and not (tmp_path / "next").exists()
    assert outcomes["good"].code == outcomes["fine"].code == 0


def test_an_earlier_attempts_error_is_not_reported_again(tmp_path: Path) -> None:
    run([shell(tmp_path, "a", "echo 'error: the first'; exit 1")])
    outcomes, _ = run([shell(tmp_path, "a", "echo the second; exit 1")])
    assert outcomes["a"].error == "the second"


def test_a_preparation_that_fails_is_the_jobs_failure(tmp_path: Path) -> None:
    def refuse() -> None:
        raise InputError("no room")

    job = Job("a", [("true",)], tmp_path / "log", done=lambda: False, prepare=refuse)
    outcomes, _ = run([job, shell(tmp_path, "b", f"touch {tmp_path}/b")])
    assert outcomes["a"] == Outcome("a", 1, "error: no room") and outcomes["b"].code == 0


def test_never_more_than_so_many_at_a_time(tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/slot$SLOT || exit 9; sleep 0.1; rmdir {tmp_path}/slot$SLOT; touch {tmp_path}/"
    outcomes, _ = run([shell(tmp_path, f"job{i}", script + f"job{i}") for i in range(7)], num_parallel=3)
    assert {outcome.code for outcome in outcomes.values()} == {0}


def test_what_another_process_works_on_is_waited_for(tmp_path: Path) -> None:
    """The lock is the log; whoever held it may have done the work meanwhile."""
    job = shell(tmp_path, "a", f"echo again >> {tmp_path}/work; touch {tmp_path}/a")
    job.log.parent.mkdir()
    with job.log.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def finish() -> None:
            time.sleep(0.3)
            (tmp_path / "a").touch()
            held.close()

        other = threading.Thread(target=finish)
        other.start()
        outcomes, said = run([job, shell(tmp_path, "b", f"touch {tmp_path}/b")])
        other.join()
    assert outcomes["a"] == Outcome("a", 0) and not (tmp_path / "work").exists()
    assert "another process is at work on it" in said[0] and said.index("b: ended") < said.index("a: ended")


def wait_for(path: Path) -> str:
    """Content of a file that a command is about to write."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"no {path}")


def signal_after(path: Path, *numbers: int) -> None:
    """Sends this process signals once a file is there."""

    def send() -> None:
        wait_for(path)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    threading.Thread(target=send).start()


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_commands_first(tmp_path: Path, number: signal.Signals) -> None:
    trap = f"trap 'echo stopped > {tmp_path}/stopped; exit 0' TERM"
    script = f"{trap}; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    signal_after(tmp_path / "pid", number)
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as stopped:
        run([shell(tmp_path, "a", script), shell(tmp_path, "b", "sleep 60")])
    assert stopped.value.number == number and signal.getsignal(number) is before
    assert (tmp_path / "stopped").exists() and not is_alive(int((tmp_path / "pid").read_text()))


def test_a_command_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    signal_after(tmp_path / "pid", signal.SIGTERM)
    with pytest.raises(StoppedError):
        run([shell(tmp_path, "a", script)], grace=0.2)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    signal_after(tmp_path / "pid", signal.SIGTERM, signal.SIGTERM)
    start = time.monotonic()
    with pytest.raises(StoppedError):
        run([shell(tmp_path, "a", script)], grace=60)
    assert time.monotonic() - start < 20 and not is_alive(int((tmp_path / "pid").read_text()))


def test_an_error_of_our_own_leaves_no_command_behind(tmp_path: Path) -> None:
    def fail(outcome: Outcome) -> None:
        raise InputError("the table cannot be written")

    jobs = [
        shell(tmp_path, "long", f"echo $$ > {tmp_path}/pid; exec sleep 60"),
        shell(tmp_path, "a", f"while [ ! -s {tmp_path}/pid ]; do sleep 0.02; done; touch {tmp_path}/a"),
    ]
    with pytest.raises(InputError, match="the table cannot be written"):
        run_jobs(jobs, num_parallel=2, environment=lambda slot: os.environ, say=print, ended=fail)
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("a\nerror: first\nerror: second\nbye\n\n", "error: second"),
        ("a\n  Killed  \n\n", "Killed"),
        ("50 %\r100 %\r", "100 %"),
        ("", "nothing was printed"),
    ],
)
def test_the_line_that_says_why(log: str, line: str) -> None:
    assert last_error(log) == line
