"""The command line `data-prep`: see `python -m data_prep --help`."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

from data_prep.no_pandas import NoPandas
from twostage.data.schema import InputError, nearest

# modules of this package
VERBS: Final = ("build", "merge", "noise", "verify", "synth", "digits", "download", "completion")
ANY_NAME: Final = ("source", "image_root")      # arguments that may have names that are not UTF-8
USAGE: Final = """usage: python -m data_prep VERB ...        (or: data-prep VERB ...)

Make datasets for twostage: checked images in tar shards, everything else in Parquet tables.

  build       images -> dataset: a folder per class, a CSV or Parquet table, MNIST, CIFAR-10, Clothing1M
  merge       put together what several machines built in parts
  noise       a new label column with wrong labels, by a transition matrix
  verify      find everything that is wrong in a dataset, and say how to mend it
  synth       photo-like JPEGs in any number, for load tests
  download    the original files of MNIST or CIFAR-10, from the internet
  digits      scikit-learn's handwritten digits as image files, for a demo without downloads
  completion  a script that lets the shell complete verbs, options and files

examples:
  python -m data_prep build photos data/photos --format folder      photos/cat/1.jpg, photos/dog/2.jpg, ...
  python -m data_prep build photos data/photos --format folder --dry-run
  python -m data_prep build labels.csv data/web --format table --short-side 256 --workers 8
  python -m data_prep build mnist data/mnist --format mnist
  python -m data_prep noise data/mnist --name noisy --kind symmetric --rate 0.4 --rng-seed 0
  python -m data_prep verify data/mnist
  python -m data_prep VERB --help

A verb that was stopped goes on where it was when the same command is given again.

exit codes: 0 done; 1 the machine failed (no space, ...), or verify found something; 2 wrong input; 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """Mistakes come out like all others, as one line."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage and leaving."""
        raise InputError(f"{message}; see {self.prog} --help")


class Formatter(argparse.HelpFormatter):
    """Leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


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
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")
        return _run(verb, arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def parser_of(verb: str) -> Parser:
    """The command line of a verb."""
    parser = Parser(prog=f"python -m data_prep {verb}", allow_abbrev=False, formatter_class=Formatter)
    importlib.import_module(f"data_prep.{verb}").add_arguments(parser)
    return parser


def _run(verb: str, arguments: list[str]) -> int:
    parser = parser_of(verb)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = [option for option in parser.format_help().replace(",", " ").split() if option.startswith("--")]
        raise InputError(f"{verb}: unknown argument {unknown[0]!r}; {nearest(unknown[0], set(options))}")
    _check_names(args)
    code: int = importlib.import_module(f"data_prep.{verb}").main(args)
    return code


def _check_names(args: argparse.Namespace) -> None:
    """Refuses what neither Arrow nor JSON can hold; SOURCE may have any name, as it is in no table."""
    for name, given in vars(args).items():
        for value in given if isinstance(given, list) else [given]:
            try:
                if isinstance(value, str | Path) and name not in ANY_NAME:
                    str(value).encode()
            except UnicodeEncodeError:
                raise InputError(f"{name} {str(value)!r} is not UTF-8: choose another name, or rename it") from None


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOSPC and "Make space" not in str(error):
        return f"{error}. Make space and run the same command again"
    return str(error)


def program() -> NoReturn:
    """The command, in a process of its own."""
    if isinstance(sys.stdout, io.TextIOWrapper):    # names of files and classes need not go with the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # what is done is done: Python, ending, would die of it
    sys.exit(code)


if __name__ in ("__main__", "__mp_main__"):     # the command, or one of its workers, in a process of its own
    sys.meta_path.insert(0, NoPandas)
if __name__ == "__main__":
    program()
