"""Prints a script that lets a shell complete `data-prep`: verbs, options, values and file names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import shtab

SHELLS: Final = ("bash", "zsh", "tcsh")
EXAMPLES: Final = """\
examples:
  eval "$(data-prep completion bash)"              for this shell; in ~/.bashrc for all
  data-prep completion bash > ~/.local/share/bash-completion/completions/data-prep
                                                   for all later shells with the package bash-completion
  data-prep completion zsh > ~/.zfunc/_data-prep   for zsh, where ~/.zfunc is in $fpath
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = (
        "Print a script that makes the shell complete `data-prep`: verbs, options, their values, file names. It holds "
        "for the command `data-prep`, not for `python -m data_prep`; `twostage completion` is the same for `twostage`."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


def main(args: argparse.Namespace) -> int:
    """Prints the script; returns the exit code."""
    from data_prep.__main__ import VERBS, parser_of  # which loads the verbs, and this one among them

    whole = argparse.ArgumentParser(prog="data-prep", description="Make datasets for twostage.")
    whole.add_argument("--version", action="store_true", help="print the version")
    verbs = whole.add_subparsers(metavar="VERB")
    for verb in VERBS:
        parser = parser_of(verb)
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE            # type: ignore[attr-defined]
        summary = (parser.description or "").split(". ")[0].split(":")[0]
        verbs.add_parser(verb, parents=[parser], add_help=False, description=summary, help=summary)
    print(shtab.complete(whole, args.shell))
    return 0
