#!/usr/bin/env python3
"""Stands in for the container: called as `fake_program.py python -m twostage VERB …`, or with data_prep, it does what
the batch scripts see of a verb: status.json, done.json, USR2, exit codes. RUN/slurm/fake-VERB says what happens:

    fail    an error
    wait    works until USR2, has saved then, and leaves; data_prep dies of it
    finish  works until USR2, and is done then

Anything else is done at once. Every process notes its start in RUN/slurm/starts. RUN lies beside the settings.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

package, verb = sys.argv[3:5]
env = os.environ
rank = int(env.get("RANK", "0"))
run_dir = Path(env["SETTINGS"]).parent / "run"
notes = run_dir / "slurm" / f"fake-{verb}"
behaviour = notes.read_text() if notes.exists() else ""
asked: list[int] = []
if package == "twostage":
    signal.signal(signal.SIGUSR2, lambda number, _: asked.append(number))


def say(state: str) -> None:
    if rank == 0 and package == "twostage":
        (run_dir / "status.json").write_text(f'{{\n  "state": "{state}"\n}}\n')


(run_dir / verb).mkdir(parents=True, exist_ok=True)
with (run_dir / "slurm" / "starts").open("a") as file:
    place = f"{env['SLURMD_NODENAME']} at {env['MASTER_ADDR']}:{env['MASTER_PORT']}"
    deepspeed = env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    file.write(f"{verb} rank {rank} of {env.get('WORLD_SIZE', 1)} on {place} {deepspeed}".rstrip() + "\n")
say("running")
if behaviour == "fail":
    say("failed")
    sys.exit("error: as asked for")
while behaviour in ("wait", "finish") and not asked:
    time.sleep(0.05)
if behaviour == "wait":
    say("preempted")
    sys.exit()
if rank == 0 and verb == "run":
    (run_dir / "summary.json").write_text("{}")
    (run_dir / "report.html").write_text("")
elif rank == 0:
    (run_dir / verb / "done.json").write_text("{}")
say("done")
