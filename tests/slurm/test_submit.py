"""Which jobs run when stages fail, wait, or are asked to stop: SLURM is real, the stages are not (fake_program.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.slurm.chain import ROOT, Chain, stub
from tests.slurm.cluster import Cluster, search_path

FAKE = ROOT / "tests" / "slurm" / "fake_program.py"
STAGES = ["pretrain", "rank", "train"]


@pytest.fixture
def chain(cluster: Cluster, tmp_path: Path) -> Chain:
    """Stages that do nothing, on a dataset that is there."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "dataset.json").touch()
    return Chain(cluster, tmp_path, tmp_path / "dataset", settings={"CONTAINER": f"({FAKE})"})


def behave(chain: Chain, verb: str, how: str) -> None:
    """Says what a verb will do."""
    (chain.run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    (chain.run_dir / "slurm" / f"fake-{verb}").write_text(how)


def starts(chain: Chain) -> list[str]:
    """One line for each process that was started, in order."""
    path = chain.run_dir / "slurm" / "starts"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_start(chain: Chain, verb: str, count: int) -> None:
    """Until that many processes of a verb have begun."""
    chain.cluster.wait(lambda: sum(line.startswith(verb) for line in starts(chain)) >= count, f"{verb} to begin")


def unreliable(chain: Chain, program: str, arguments: str, times: int) -> None:
    """Lets jobs find a program of SLURM that, called with such arguments, does not reach the controller so many times;
    and a `sleep` that does not take as long as it is told."""
    calls = chain.folder / f"{program}-calls"
    stub(chain.folder, "sleep", "exec /bin/sleep 0.2")
    path = stub(chain.folder, program, f"""\
case "$*" in {arguments})
    echo >> {calls}
    if [ "$(wc -l < {calls})" -le {times} ]; then echo "{program}: unreachable" >&2; exit 1; fi ;;
esac
exec {shutil.which(program, path=search_path())} "$@"
""")
    chain.settings["PATH"] = f"{path.parent}:$PATH"


def test_every_stage_runs_after_the_one_before_with_a_process_on_each_node(chain: Chain) -> None:
    jobs = chain.submit()
    assert list(jobs) == STAGES
    chain.finish(jobs)
    lines = [line.split() for line in starts(chain)]
    assert list(dict.fromkeys(words[0] for words in lines)) == ["pretrain", "rank", "mine", "train", "run"]
    for verb, job in (("pretrain", "pretrain"), ("rank", "rank"), ("train", "train"), ("run", "train")):
        place = f"127.0.0.1:{15000 + int(jobs[job]) % 10000}"
        assert sorted(line for line in starts(chain) if line.split()[0] == verb) == [
            f"{verb} rank 0 of 2 on n1 at {place}", f"{verb} rank 1 of 2 on n2 at {place}"]
    assert [words[1:5] for words in lines if words[0] == "mine"] == [["rank", "0", "of", "1"]]
    assert chain.submit() == {}


def test_deepspeed_is_asked_for_as_its_launcher_would_do_it(chain: Chain) -> None:
    chain.settings["DEEPSPEED"] = "launch/deepspeed/zero1.json"
    chain.finish({"pretrain": chain.submit()["pretrain"]})
    assert all(line.endswith(" launch/deepspeed/zero1.json") for line in starts(chain))


def test_processes_get_the_environment_also_where_sbatch_passes_none_on(chain: Chain) -> None:
    chain.settings["ALL_JOBS"] = "(--export=NONE)"
    chain.finish({"pretrain": chain.submit()["pretrain"]})
    assert {line.split(" on ")[0] for line in starts(chain)} >= {"pretrain rank 0 of 2", "pretrain rank 1 of 2"}


def test_a_failing_stage_cancels_the_rest_and_submitting_again_runs_only_what_is_missing(chain: Chain) -> None:
    behave(chain, "rank", "fail")
    jobs = chain.submit()
    chain.finish({"pretrain": jobs["pretrain"]})
    chain.cluster.wait_for(jobs["rank"], "FAILED")
    chain.cluster.wait_for(jobs["train"], "CANCELLED")
    assert "error: as asked for" in chain.log("rank")
    assert "twostage rank failed" in chain.log("rank")
    behave(chain, "rank", "")
    again = chain.submit()
    assert list(again) == ["rank", "train"]
    chain.finish(again)
    assert [line.split()[0] for line in starts(chain)].count("pretrain") == 2       # two ranks, once


def test_what_is_in_the_queue_is_not_submitted_again(chain: Chain) -> None:
    behave(chain, "pretrain", "wait")
    jobs = chain.submit()
    assert list(jobs) == STAGES
    assert chain.submit() == {}
    chain.cluster.succeed("scancel", jobs["train"])
    again = chain.submit()
    assert list(again) == ["train"]
    assert chain.cluster.job(again["train"])["Dependency"].startswith(f"afterok:{jobs['rank']}")


def test_nothing_is_submitted_while_slurm_does_not_answer(chain: Chain) -> None:
    squeue = stub(chain.folder, "squeue", "echo unreachable >&2; exit 1")
    chain.settings["PATH"] = f"{squeue.parent}:$PATH"
    done = chain.call()
    assert done.returncode != 0
    assert "unreachable" in done.stderr and "submitted" not in done.stdout
    assert not chain.cluster.succeed("squeue", "--noheader")


def test_a_job_is_requeued_up_to_the_cap_then_ends_and_submitting_again_goes_on(chain: Chain) -> None:
    chain.settings["MAX_REQUEUES"] = "1"
    behave(chain, "pretrain", "wait")
    jobs = chain.submit()
    for start in (1, 2):
        wait_for_start(chain, "pretrain", 2 * start)
        chain.cluster.succeed("scancel", "--batch", "--signal=USR1", jobs["pretrain"])
    chain.cluster.wait_for(jobs["pretrain"], "FAILED")
    assert chain.cluster.job(jobs["pretrain"])["Restarts"] == "1"
    assert chain.cluster.job(jobs["pretrain"])["ExitCode"] == "75:0"
    log = chain.log("pretrain")
    assert log.count("saved; requeued") == 1 and "start number 2" in log and "MAX_REQUEUES" in log
    chain.cluster.wait_for(jobs["train"], "CANCELLED")
    behave(chain, "pretrain", "")
    chain.finish(chain.submit())


def test_a_job_is_requeued_although_the_controller_does_not_answer_at_first(chain: Chain) -> None:
    unreliable(chain, "scancel", "*--signal=USR2*", 1)
    unreliable(chain, "scontrol", "requeue*", 1)
    behave(chain, "pretrain", "wait")
    number = chain.submit()["pretrain"]
    wait_for_start(chain, "pretrain", 2)
    chain.cluster.succeed("scancel", "--batch", "--signal=USR1", number)
    chain.cluster.wait(lambda: chain.cluster.job(number)["Restarts"] == "1", "the requeue", seconds=30)
    log = chain.log("pretrain")
    assert "scancel: unreachable" in log and "scontrol: unreachable" in log
    behave(chain, "pretrain", "")
    chain.finish({"pretrain": number})


def test_a_job_that_cannot_be_requeued_says_so_and_submitting_again_goes_on(chain: Chain) -> None:
    unreliable(chain, "scontrol", "requeue*", 100)
    behave(chain, "pretrain", "wait")
    jobs = chain.submit()
    wait_for_start(chain, "pretrain", 2)
    chain.cluster.succeed("scancel", "--batch", "--signal=USR1", jobs["pretrain"])
    chain.cluster.wait_for(jobs["pretrain"], "FAILED", seconds=30)
    assert chain.cluster.job(jobs["pretrain"])["ExitCode"] == "75:0"
    log = chain.log("pretrain")
    assert log.count("scontrol: unreachable") == 5 and "submit.sh goes on with it" in log.splitlines()[-1]
    behave(chain, "pretrain", "")
    chain.cluster.wait_for(jobs["train"], "CANCELLED")
    assert list(chain.submit()) == STAGES


def test_a_verb_that_ended_all_the_same_is_not_followed_by_another_before_the_requeue(chain: Chain) -> None:
    behave(chain, "rank", "finish")         # was in its last step when the signal came
    jobs = chain.submit()
    wait_for_start(chain, "rank", 2)
    chain.cluster.succeed("scancel", "--batch", "--signal=USR1", jobs["rank"])
    chain.cluster.wait(lambda: "saved; requeued" in chain.log("rank"), "the requeue")
    assert not any(line.startswith("mine") for line in starts(chain))
    behave(chain, "rank", "")
    chain.finish(jobs)
    assert chain.cluster.job(jobs["rank"])["Restarts"] == "1"


def test_data_prep_is_killed_and_begun_again_and_a_status_of_earlier_changes_nothing(chain: Chain) -> None:
    chain.settings["SOURCE"] = "/images"            # what was built of them has not been verified
    behave(chain, "verify", "wait")
    (chain.run_dir / "status.json").write_text('{\n  "state": "done"\n}\n')
    number = chain.submit()["merge"]
    wait_for_start(chain, "verify", 1)
    chain.cluster.succeed("scancel", "--batch", "--signal=USR1", number)
    chain.cluster.wait(lambda: chain.cluster.job(number)["Restarts"] == "1", "the requeue")
    behave(chain, "verify", "")
    chain.finish({"merge": number})
    assert "failed" not in chain.log("merge")


def test_stopping_one_task_of_an_array_leaves_the_others_alone(chain: Chain) -> None:
    """The task that has the array's own number as its SLURM_JOB_ID."""
    chain.settings |= {"SOURCE": "/images", "PREP_PARTS": "3"}
    (chain.dataset / "dataset.json").unlink()
    behave(chain, "build", "wait")
    number = chain.submit()["prep"]
    wait_for_start(chain, "build", 3)
    stopped = next(name for name, task in chain.cluster.tasks(number).items() if task["JobId"] == task["ArrayJobId"])
    behave(chain, "build", "")
    chain.cluster.succeed("scancel", "--batch", "--signal=USR1", f"{number}_{stopped}")
    chain.cluster.wait(lambda: chain.cluster.tasks(number)[stopped]["JobState"] == "COMPLETED", "the stopped task")
    assert {name: (task["JobState"], task["Restarts"]) for name, task in chain.cluster.tasks(number).items()} == {
        name: ("COMPLETED", "1") if name == stopped else ("RUNNING", "0") for name in ("1", "2", "3")}
    assert len(starts(chain)) == 4


def test_a_script_that_is_submitted_alone_makes_its_folder(chain: Chain) -> None:
    chain.settings["SOURCE"] = "/images"
    number = chain.cluster.succeed("sbatch", "--parsable", f"--chdir={ROOT}", f"--output={chain.folder}/merge.out",
                                   str(ROOT / "launch" / "slurm" / "merge.sbatch"), str(chain.write()))
    chain.cluster.wait_for(number, "COMPLETED", "FAILED")
    assert "merge: done" in chain.call("--dry-run").stdout, (chain.folder / "merge.out").read_text()
