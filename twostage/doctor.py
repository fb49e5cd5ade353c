"""`twostage doctor`: whether this machine, or all processes of a launch together, can do what a run needs."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from twostage.cli import Parser
from twostage.config import AugmentConfig
from twostage.data.schema import InputError
from twostage.machine_config import LoaderConfig, RuntimeConfig

if TYPE_CHECKING:
    from twostage.runtime.world import World

EXAMPLES: Final = """\
examples:
  twostage doctor                  this process alone; the current folder is tried as a run folder
  twostage doctor --folder runs    another folder, on the disk that runs will be written to
  accelerate launch --config_file launch/accelerate/cpu-2.yaml -m twostage doctor
                                   all processes together: who is who, and how fast they talk

exit codes: 0 nothing wrong, perhaps with warnings; 1 something will not work, and what to do is printed beside it
"""
OPEN_FILES: Final = 4096        # a reader keeps shards open
FREE_BYTES: Final = 10 << 30
PROBE_BYTES: Final = 64 << 20   # written, and sent around
NUM_IMAGES: Final = 64


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: Literal["ok", "warn", "fail"]
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n      {self.remedy}" if self.remedy else ""
        return f"{self.state:<4}  {self.what}: {self.found}{remedy}"


def doctor(arguments: list[str]) -> int:
    """`twostage doctor`."""
    from twostage.runtime.stage import environment
    from twostage.runtime.world import all_reduce_sum, gather_strings, start

    args = make_parser().read(arguments)
    if not args.folder.is_dir():
        raise InputError(f"--folder {args.folder}: no such folder; make it, or give one that is there")
    import torch

    begun = time.monotonic()
    _, world = start(RuntimeConfig())
    facts = environment()
    findings = [*packages(facts), *_tried("the machine", lambda: machine(facts, world)), *disk(args.folder)]
    findings += _tried("decoding", lambda: decoding(world))
    findings += _tried("talking to the other processes", lambda: talking(world))
    rank = f"rank {world.rank}: process {os.getpid()} on {os.uname().nodename}, {world.device}"
    rows = gather_strings("\n".join([rank, *map(str, findings)]), world)
    failed = torch.tensor(int(any(f.state == "fail" for f in findings)), device=world.device)
    code = int(all_reduce_sum(failed, world).item() > 0)
    if world.is_main:
        print("\n".join(_merged(rows)))
        print(f"{'something will not work' if code else 'all is well'}; {time.monotonic() - begun:.0f} s")
    return code


def packages(facts: dict[str, Any]) -> Iterator[Finding]:
    """Versions, and what is missing; `facts` are those of `stage.environment`."""
    yield Finding("ok", "python", f"{facts['python']}; {facts['platform']}")
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    yield Finding("ok", "packages", versions)
    if importlib.util.find_spec("nvidia.dali") is None:
        yield Finding("fail", "DALI", "not installed", "pip install 'twostage[cuda12]' or [cuda13]; see the README")
    if importlib.util.find_spec("deepspeed") is None:
        yield Finding("ok", "DeepSpeed", "not installed; only `launch/accelerate/deepspeed-*.yaml` need it")


def machine(facts: dict[str, Any], world: World) -> Iterator[Finding]:
    """Processors, memory, limits, GPUs, and what SLURM says; `facts` as above."""
    import torch
    import torch.distributed as dist

    yield Finding("ok", "processor", f"{facts['cpu']}, {facts['cpu_cores']} cores, {facts['memory_gib']} GiB")
    gpus = facts["gpus"]
    if gpus:
        yield Finding("ok", "GPUs", "; ".join(gpus))
        if world.device.type == "cuda":     # only its own: to ask for another's takes memory there, or is forbidden
            free = torch.cuda.mem_get_info(world.device)[0] / 2**30
            yield Finding("ok", "GPU memory", f"{free:.1f} GiB free on {world.device} of {os.uname().nodename}")
        if not dist.is_nccl_available():
            yield Finding("fail", "NCCL", "this torch is built without it", "install torch from its own index")
    else:
        cause = "this torch is built without CUDA" if torch.version.cuda is None else "the driver shows none"
        yield Finding("warn", "GPUs", f"none ({cause})", "CPUs do everything, slowly; nvidia-smi shows what is there")
    if not dist.is_gloo_available():
        yield Finding("fail", "gloo", "this torch is built without it", "install torch from its own index")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < OPEN_FILES
    remedy = f"ulimit -n {min(hard, 65536)}" if few else ""
    yield Finding("warn" if few else "ok", "open files", f"at most {soft}", remedy)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        little = size < 1 << 30
        remedy = "in a container: --shm-size 8g" if little else ""
        yield Finding("warn" if little else "ok", "shared memory", f"{size / 2**30:.1f} GiB", remedy)
    said = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("SLURM_JOB_ID", "SLURM_NODE", "SLURM_NTASKS"))}
    yield Finding("ok", "SLURM", ", ".join(f"{k}={v}" for k, v in said.items()) or "not in a job")


def disk(folder: Path) -> Iterator[Finding]:
    """Free space, and a file as a checkpoint is written: brought to the disk, and read back."""
    from twostage.runtime.manifest import write_synced

    free = shutil.disk_usage(folder).free
    little = free < FREE_BYTES
    remedy = "a ResNet-50's run keeps 2 checkpoints of 0.3 GB and the best weights for each stage" if little else ""
    yield Finding("warn" if little else "ok", "disk", f"{free / 2**30:.1f} GiB free in {folder.resolve()}", remedy)
    data = os.urandom(1 << 20) * (PROBE_BYTES >> 20)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as inside:
            begun = time.perf_counter()
            entry = write_synced(Path(inside) / "probe", data)
            rate = PROBE_BYTES / (time.perf_counter() - begun)
            back = hashlib.sha256((Path(inside) / "probe").read_bytes()).hexdigest()
    except OSError as error:
        yield Finding("fail", "writing", f"{error}", "give --folder (and run.dir) a place that can be written to")
        return
    if back != entry["sha256"]:
        yield Finding("fail", "reading back", "other bytes than were written", "do not keep runs on this disk")
        return
    slow = rate < 20e6
    remedy = "each checkpoint of a ResNet-50 will take half a minute: use a faster disk" if slow else ""
    found = f"{rate / 1e6:.0f} MB/s, brought to the disk and read back"
    yield Finding("warn" if slow else "ok", "writing", found, remedy)


def decoding(world: World) -> Iterator[Finding]:
    """JPEGs through the loader of a run, each beside what Pillow makes of it."""
    import numpy as np
    from PIL import Image

    from twostage.data.loader import open_loader
    from twostage.report.photos import Header, as_dataset

    augment = AugmentConfig(resize=None, size=64, shift=0, flip=False, mean=[0.0, 0.0, 0.0], std=[1 / 255] * 3)
    y, x = np.mgrid[0:64, 0:64]
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        files = [Path(folder) / f"{n}.jpg" for n in range(NUM_IMAGES)]
        for n, file in enumerate(files):
            pixels = np.stack([x * 3 + n, y * 3, (x + y) * 2 - n], axis=2).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file, quality=95)
        with as_dataset(files, [Header(file.stat().st_size, 64, 64) for file in files]) as dataset:
            loader = open_loader(dataset, augment, LoaderConfig(cache="never"), world.device)
            (((images,), _),) = loader.batches([np.arange(NUM_IMAGES)], training=False)
            decoded = images.cpu().numpy().transpose(0, 2, 3, 1)
            loader.close()
        expected = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).astype(np.float32)
    off = float(np.abs(decoded - expected).mean())
    where = f"{NUM_IMAGES} JPEGs by DALI on {world.device}, {off:.2f} of 255 from Pillow's"
    wrong = not off < 4
    remedy = "the driver and DALI do not fit; loader.decoder: cpu is the way round" if wrong else ""
    yield Finding("fail" if wrong else "ok", "decoding", where, remedy)


def talking(world: World) -> Iterator[Finding]:
    """A sum over all processes whose result is known, and how fast it is."""
    import torch
    import torch.distributed as dist

    from twostage.runtime.world import all_reduce_sum, barrier

    if world.size == 1:
        yield Finding("ok", "processes", "one, so nobody to talk to; try it by `accelerate launch`")
        return
    sent = torch.full((PROBE_BYTES // 4,), float(world.rank + 1), device=world.device)
    barrier(world)
    begun = time.perf_counter()
    total = all_reduce_sum(sent, world)
    right = bool((total == world.size * (world.size + 1) / 2).all())
    rate = PROBE_BYTES / (time.perf_counter() - begun)
    found = f"{world.size} by {dist.get_backend()}: a sum of {PROBE_BYTES >> 20} MiB at {rate / 1e6:.0f} MB/s"
    yield Finding("ok" if right else "fail", "processes", found, "" if right else "sums are wrong: check the network")


def _tried(what: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of a check; whatever goes wrong in it is one."""
    try:
        return list(check())
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return [Finding("fail", what, said, "packages that do not fit are named by: pip check")]


def _merged(rows: list[str]) -> Iterator[str]:
    """The rank table, then each finding once, with the ranks where not all found it."""
    by_finding: dict[str, list[int]] = {}
    for rank, row in enumerate(rows):
        head, *findings = re.split(r"\n(?! )", row)     # a remedy is indented, and belongs to the line above it
        yield head
        for finding in findings:
            by_finding.setdefault(finding, []).append(rank)
    for finding, ranks in by_finding.items():
        line, *remedy = finding.split("\n")
        yield line if len(ranks) == len(rows) else f"{line}  [rank {', '.join(map(str, ranks))}]"
        yield from remedy


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="twostage doctor",
        allow_abbrev=False,
        description="Check versions, GPUs, limits, the disk, decoding, and that all processes of a launch can talk.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where runs will be (default: here)")
    return parser
