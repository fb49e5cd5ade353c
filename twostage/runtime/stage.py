"""When a stage is begun, when it is done, and with which inputs; and what it ran on. Imports no torch by itself."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.data.schema import InputError, write_json
from twostage.runtime import preemption, watchdog

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from twostage.runtime.world import World

ABSENT = object()
SEE_SECONDS = 180.0
SAY_SECONDS = 5.0
PACKAGES = ("twostage", "torch", "accelerate", "deepspeed", "numpy", "pyarrow", "safetensors", "pillow", "webdataset")


def plain(config: DataclassInstance, prefix: str = "") -> dict[str, Any]:
    """A configuration section as flat JSON: `{prefix}name: value`, sections inside it as `name.name`."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            leaves |= plain(value, f"{prefix}{field.name}.")
        else:
            leaves[prefix + field.name] = json.loads(json.dumps(value, default=str))
    return leaves


def done(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether the stage in `folder` was finished with exactly these inputs.

    Raises:
        InputError: it was finished with other inputs; lists each that differs.
    """
    recorded = read_inputs(folder / "done.json")
    if recorded is None:
        return False
    _compare(folder, recorded, inputs, "finished")
    return True


def begin(folder: Path, inputs: dict[str, Any], world: World | None = None) -> None:
    """Notes in `folder` what the stage is begun with, or checks that it goes on with the same.

    Where nothing but that note is in the folder, as after settings that were refused, it is begun anew.

    Raises:
        InputError: it was begun with other inputs, a changed dataset say; lists each that differs.
        Preempted: with a world, and asked to stop before the stage computed anything.
    """
    recorded = read_inputs(folder / "inputs.json")
    anew = recorded is None or _untouched(folder)
    if recorded is not None and not anew:
        _compare(folder, recorded, inputs, "begun")
    _wait(world)
    if anew and (world is None or world.is_main):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "inputs.json", {"inputs": inputs})
    if world is None:
        return
    _wait(world)
    preemption.leave_if_asked(folder, None, world)


def finish(folder: Path, inputs: dict[str, Any], results: dict[str, Any], world: World | None = None) -> None:
    """Writes the marker that makes the stage done, last of all, after every rank has come here."""
    _wait(world)
    if world is None or world.is_main:
        write_json(folder / "done.json", {"inputs": inputs, "results": results})
    _wait(world)
    if world is not None:
        see(folder, inputs)
    watchdog.sleep()


def see(folder: Path, inputs: dict[str, Any] | None = None) -> None:
    """Waits until this machine sees what rank 0 has finished, so that all ranks go by the same files from then on.

    A network file system may remember for a minute that a file was not there. Of a folder in which one file is new to
    it, it asks for all others anew, and done.json is written last.

    Args:
        inputs: those it was finished with; None: any.

    Raises:
        InputError: it does not come to see them.
    """
    marker, until, said = folder / "done.json", time.monotonic() + SEE_SECONDS, False
    expected = None if inputs is None else json.loads(json.dumps(inputs))
    while (found := read_inputs(marker)) is None or (expected is not None and found != expected):
        if time.monotonic() > until:
            raise InputError(
                f"{marker} was written by rank 0, and {os.uname().nodename} has not seen it for {SEE_SECONDS:g} s: "
                "run.dir must be the same folder on all machines"
            )
        if not said and time.monotonic() > until - SEE_SECONDS + SAY_SECONDS:
            print(f"{os.uname().nodename}: waiting to see {marker}", flush=True)
            said = True
        time.sleep(0.05)


def check_dataset(folder: Path, digests: dict[str, str]) -> None:
    """Checks that a stage that another goes on from was finished on the same dataset; nothing if it is not there.

    Args:
        digests: as of Views; columns that the stage did not read do not matter.

    Raises:
        InputError: samples or labels are others; lists them.
    """
    _compare_common(folder, read_inputs(folder / "done.json") or {}, digests, "finished")


def check_same(folder: Path, settings: dict[str, Any]) -> None:
    """As `done` and `begin` would, refuses a stage that is there with other settings, as far as these go.

    Raises:
        InputError: a setting that the stage has noted is another one here.
    """
    for name, verb in (("done.json", "finished"), ("inputs.json", "begun")):
        recorded = read_inputs(folder / name)
        if recorded is not None and not (verb == "begun" and _untouched(folder)):
            _compare_common(folder, recorded, settings, verb)
            return


def read_inputs(path: Path) -> dict[str, Any] | None:
    """The inputs that `inputs.json` or `done.json` records; None where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    return _read(path, "inputs")


def read_results(path: Path) -> dict[str, Any] | None:
    """The results that `done.json` records; None where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    return _read(path, "results")


def _read(path: Path, part: str) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())[part]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): delete the folder {path.parent} and run again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (no {part}): delete the folder {path.parent} and run again")
    return content


def _untouched(folder: Path) -> bool:
    """Whether a stage has been begun and nothing computed."""
    return all(path.name == "inputs.json" for path in folder.iterdir())


def _wait(world: World | None) -> None:
    if world is not None and world.size > 1:
        from twostage.runtime.world import barrier  # needs torch

        barrier(world)


def _compare_common(folder: Path, recorded: dict[str, Any], now: dict[str, Any], verb: str) -> None:
    """`_compare` of what both have."""
    common = [key for key in now if key in recorded]
    _compare(folder, {key: recorded[key] for key in common}, {key: now[key] for key in common}, verb)


def _compare(folder: Path, recorded: dict[str, Any], inputs: dict[str, Any], verb: str) -> None:
    now = json.loads(json.dumps(inputs))        # as it comes back from the file: tuples are lists
    keys = [key for key in {**recorded, **now} if recorded.get(key, ABSENT) != now.get(key, ABSENT)]
    if not keys:
        return
    changes = ", ".join(f"{key}: {_shown(recorded.get(key, ABSENT))} -> {_shown(now.get(key, ABSENT))}" for key in keys)
    if all(key.startswith("dataset.") for key in keys):
        what = f"the dataset changed since {folder} was {verb}"
    else:
        what = f"{folder} was {verb} with other inputs"
    raise InputError(f"{what} (then -> now): {changes}; choose another run.dir, or delete {folder} to do it again")


def _shown(value: Any) -> str:
    return "(absent)" if value is ABSENT else json.dumps(value, ensure_ascii=False)


def environment() -> dict[str, Any]:
    """What a run runs on, for the record: versions, hardware, the code's git commit, the command line."""
    return {
        "command": shlex.join(sys.argv),
        "git_commit": _git_commit(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name}
    wanted = [*PACKAGES, *sorted(name for name in installed if name.startswith("nvidia-dali"))]
    return {name: installed[name] for name in wanted if name in installed}


def _git_commit(root: Path) -> str | None:
    """Commit of the checkout that this code lies in, `+changes` if it was edited since; None outside of one."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root)]
    head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return None
    edited = subprocess.run([*command, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode == 1
    return head.stdout.strip() + ("+changes" if edited else "")


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):       # not known on every system
        return None


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
