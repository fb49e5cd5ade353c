"""The command line `twostage`: see `twostage --help`."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from importlib.metadata import version
from typing import Final, NoReturn

from twostage.cli import is_main_process, parse
from twostage.commands import ALL, OF_FOLDERS, function_of, print_help
from twostage.data.schema import InputError, nearest
from twostage.rehearsal import rehearse
from twostage.runtime import failure, preemption, record, status
from twostage.verbs import VERBS

# Before torch is loaded: OpenMP's waiting threads spin by default, and where decoding or another program shares the
# cores, training was up to seven times slower for it (configs/LOG.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST: Final = 300        # characters of what a rank says that fails because another one did

USAGE = """usage: twostage VERB --config FILE [--section.field=value ...]

Learn an image classifier from photos with noisy labels, in two stages.

  run         the whole method in one command: all of the next five, and the report
  pretrain    stage 1: train on the noisy labels, classes balanced
  rank        stage 1: score every sample with that network
  mine        stage 1: keep the labels that are very likely right (the seed set)
  train       stage 2: train on with all images and only those labels
  baselines   the rows that `run.baselines` names, for comparison
  evaluate    test every model of the run

  plan        before anything is started: steps, batches, memory and hours of `run`: twostage plan --config FILE

With a clean set, the split data.clean_split:
  clean_filter  before rank: a classifier per class, which says what `mine` keeps (mine.rule: clean_filter)
  finetune      after train: fine-tune on it with a very small learning rate (`run` too, with run.finetune)

These take run folders instead; see `twostage VERB --help`:
  report      one page about a run, or about several side by side: twostage report RUN [RUN ...]
  audit       the most doubtful labels; all labels as a table; corrected labels: twostage audit RUN
  predict     what a model says about images, by class names: twostage predict RUN PATHS
  export      a model as a folder for other tools: safetensors, torch.export, ONNX: twostage export RUN OUT
  runs        what ran, how far it is, its best figures: twostage runs DIR [DIR ...]
  reproduce   a table of the paper: many runs, ours beside its figures
  doctor      whether this machine, or all processes of a launch, can do what a run needs
  completion  a script that lets the shell complete verbs, fields and files: twostage completion bash

A verb does only what is missing in the run folder, so it is safe to run again after anything. On SIGTERM or SIGUSR2
it saves, says so in status.json in the run folder, and leaves with exit code 0.

examples:
  twostage run --config configs/mnist/asymmetric-0.6-pi.yaml --data.dataset mnist --run.dir runs/first
  twostage run --config FILE --dry-run      check everything, say what would be done, do nothing
  twostage run --help                       every field with its default
  twostage run --config FILE --print_config the resolved configuration
  accelerate launch --config_file launch/accelerate/cpu-2.yaml -m twostage run --config FILE

exit codes: 0 done, or asked to stop and saved; 1 the machine failed (no space, ...); 2 wrong input; 3 predict: some
files could not be read; 130 interrupted
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(version("twostage"))
        return 0
    verb = arguments[0]
    try:
        if verb in OF_FOLDERS:
            code = function_of(verb)(arguments[1:])
            _part()
            return code
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; {nearest(verb, ALL)}")
        if {"-h", "--help"} & set(arguments):
            print_help(verb)
            return 0
        given = [word for word in arguments[1:] if word != "--dry-run"]
        function = VERBS[verb]
        with preemption.listening():
            config = parse(verb, str(function.__doc__), given)
            if len(given) < len(arguments) - 1:
                return rehearse(verb, config)
            with status.reported(config.run.dir, verb), record.kept(config.run.dir):
                code = function(config)
            _part()
            return code
    except preemption.Preempted as stop:
        if is_main_process():
            print(stop, flush=True)
        _part()
        return 0
    except InputError as error:
        _say(str(error))
        return 2
    except OSError as error:
        _say(_explain(error))
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except Exception as error:
        first = failure.is_first()
        if first is None:
            raise
        if first:
            traceback.print_exc()
        _say(f"{type(error).__name__}: {error}")
        return 1


def _say(message: str) -> None:
    """Says why it ends, with the rank where there are several processes, unless another rank has said so before."""
    first = failure.is_first()
    rank, host = os.environ.get("RANK", "0"), os.uname().nodename
    if first is None:       # before the ranks have met: those of a host check the same things, so one of them speaks
        if rank == "0" or "rank" in message:
            print(f"error: {message}", file=sys.stderr)
        elif os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: rank {rank} on {host}: {message}", file=sys.stderr)
    elif first:
        who = "" if os.environ.get("WORLD_SIZE", "1") == "1" else f"rank {rank}: "
        print(f"error: {who}{message}", file=sys.stderr)
    else:
        why = f", as rank 0 is gone: {' '.join(message.split())[:LONGEST]}" if failure.first_is_gone() else ""
        print(f"rank {rank} ends as well{why}", file=sys.stderr)


def _part() -> None:
    """Leaves the other processes, all being well: one that ends among gloo's threads is sometimes aborted by them."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{error}. Make space and run the same command again: it goes on from the last checkpoint"
    return str(error)


def program() -> NoReturn:
    """The command, in a process of its own."""
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # what is done is done: Python, ending, would die of it
    sys.exit(code)


if __name__ == "__main__":
    program()
