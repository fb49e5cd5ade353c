"""A SLURM cluster on this machine: munged, slurmctld and two slurmd on loopback, all files in one temporary folder."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n1", "n2")

# cred_expire: a requeued job waits one second longer than this (the default would be two minutes).
# linuxproc, task/none, no accounting: nothing that needs cgroups, systemd or a database.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=1
KillWait=15
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=UNLIMITED PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=n1,n2 MaxTime=UNLIMITED PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """What keeps this machine from having such a cluster; None where nothing does."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if missing:
        return f"no {missing[0]}: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "SLURM's daemons start jobs as root only"
    return None


@functools.cache
def own_disks() -> bool:
    """Whether programs may have mounts of their own here."""
    return subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False,
                          capture_output=True).returncode == 0


def search_path() -> str:
    """Debian keeps daemons where users do not look."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass
class Cluster:
    """A running cluster."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def local_disk(self) -> Path:
        """A folder that is another one on each node, where this machine lets it be."""
        return self.folder / "local"

    def on_disk_of(self, node: str) -> Path:
        """The node's own folder of that path, as seen from here."""
        daemon = self.daemons[2 + NODES.index(node)]
        return Path(f"/proc/{daemon.pid}/root{self.local_disk}")

    @property
    def environment(self) -> dict[str, str]:
        """For every command that talks to this cluster; its daemons and jobs are known by it, too."""
        names = ("SLURM_", "SBATCH_", "SRUN_")      # of a job that the tests themselves may run in
        own = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        return {**own, "PATH": search_path(), "SLURM_CONF": str(self.folder / "slurm.conf"),
                "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}

    def call(self, command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command against this cluster; `more` goes into its environment."""
        environment = {**self.environment, **more}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    def succeed(self, *command: str) -> str:
        """Output of a command that is to succeed."""
        done = self.call(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> Mapping[str, str]:
        """Of one job, what `scontrol show job` says: JobState, Restarts, Reason, …"""
        words = self.succeed("scontrol", "-o", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def tasks(self, number: str) -> dict[str, Mapping[str, str]]:
        """Of an array job, the same of each task, by its number in the array."""
        lines = self.succeed("scontrol", "-o", "show", "job", number).splitlines()
        tasks = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
        return {task["ArrayTaskId"]: task for task in tasks}

    def state(self, number: str) -> str:
        """RUNNING, COMPLETED, FAILED, CANCELLED, …; of an array job, the first of its tasks' that is not COMPLETED."""
        lines = self.succeed("scontrol", "-o", "show", "job", number).splitlines()
        states = [line.partition(" JobState=")[2].split()[0] for line in lines]
        return next((state for state in states if state != "COMPLETED"), "COMPLETED")

    def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = 120) -> None:
        """Until `condition` holds; says what it waited for when it does not come."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s for {what}; {self._situation()}")
            time.sleep(0.3)

    def wait_for(self, number: str, *states: str, seconds: float = 120) -> None:
        """Until the job is in one of the states."""
        self.wait(lambda: self.state(number) in states, f"job {number}: {' or '.join(states)}", seconds=seconds)

    def _situation(self) -> str:
        ended = [f"{daemon.args}: {daemon.returncode}" for daemon in self.daemons if daemon.poll() is not None]
        printed = [path.read_text()[-500:] for path in sorted(self.folder.glob("*.out"))]
        queue = self.call(["squeue", "-o", "%i %j %T %r %M"]).stdout if not ended else ""
        return "\n".join([f"ended: {ended}", *printed, queue])

    def clear(self) -> None:
        """No jobs, and both nodes up: as a new cluster."""
        self.succeed("scancel", "--user=root", "--signal=KILL", "--full", "--quiet")
        self.succeed("scancel", "--user=root")
        self.wait(lambda: not self.succeed("squeue", "--noheader"), "an empty queue")
        for node in NODES:
            if "down" in self.succeed("sinfo", "--noheader", "--nodes", node, "--format=%T"):
                self.succeed("scontrol", "update", f"nodename={node}", "state=resume")
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        self.wait(lambda: self.call(["sinfo", "--noheader", "--Node", "--format=%T"]).stdout.split().count("idle")
                  >= len(NODES), f"idle nodes; logs in {self.folder}", seconds=60)

    def start(self) -> None:
        """Starts the daemons and waits until both nodes are there."""
        ports = free_ports(3)
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=self.folder, host=platform.node(), ports=ports)
        )
        self.folder.chmod(0o755)            # munged wants its socket to be reachable by all users
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = ("--socket", "munge.socket"), ("--log-file", "munge.log"), ("--pid-file", "munge.pid"), (
            "--seed-file", "munge.seed"), ("--key-file", "munge.key")
        self._daemon("munged", "--foreground", *(f"{option}={self.folder / name}" for option, name in files))
        self.wait((self.folder / "munge.socket").exists, "munge's socket", seconds=20)
        self._daemon("slurmctld", "-D")
        self.local_disk.mkdir()
        for node in NODES:
            if own_disks():
                disk = f"mount -t tmpfs -o size=100m {node} '{self.local_disk}' && exec slurmd -D -N {node}"
                self._daemon("unshare", "--mount", "sh", "-c", disk)
            else:
                self._daemon("slurmd", "-D", "-N", node)
        self._wait_until_up()

    def _daemon(self, *command: str) -> None:
        # setpriv: they end with the tests, also when these are killed
        output = (self.folder / f"{command[0]}.out").open("ab")
        self.daemons.append(subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], env=self.environment, cwd=self.folder,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        ))
        output.close()

    def stop(self) -> None:
        """Ends the daemons, all jobs and whatever they have left; removes the folder."""
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        while numbers := self.processes():
            for number in numbers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.05)
        shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """Of this cluster, all that run on this machine: they have its configuration in their environment."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster for the time of a `with`; `folder` is new, with a short path (munge's socket lies in it)."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
