"""`twostage completion`: a script that lets a shell complete verbs, options, fields and file names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import shtab

from twostage.cli import Parser
from twostage.commands import ALL, TAKES_FIELDS, add_fields, parser_of

SHELLS: Final = ("bash", "zsh", "tcsh")
DESCRIPTION: Final = """\
Print a script that makes the shell complete `twostage`: verbs, options, the fields of the configuration, their
values, file names. It holds for the command `twostage`, not for `python -m twostage`; `data-prep completion` is the
same for `data-prep`."""
EXAMPLES: Final = """\
examples:
  eval "$(twostage completion bash)"              for this shell; in ~/.bashrc for all, which costs each its start
  mkdir -p ~/.local/share/bash-completion/completions
  twostage completion bash > ~/.local/share/bash-completion/completions/twostage
                                                  for all later shells with the package bash-completion
  twostage completion zsh > ~/.zfunc/_twostage    for zsh, where ~/.zfunc is in $fpath
"""


def completion(arguments: list[str]) -> int:
    """`twostage completion SHELL`."""
    args = make_parser().read(arguments)
    print(script(args.shell))
    return 0


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    whole = argparse.ArgumentParser(prog="twostage", description="Learn an image classifier from noisy labels.")
    whole.add_argument("--version", action="store_true", help="print the version")
    verbs = whole.add_subparsers(metavar="VERB")
    for verb in ALL:
        parser = parser_of(verb)
        paths = list(add_fields(parser)) if verb in TAKES_FIELDS else []
        paths += [action for action in parser._actions if action.type is Path or action.metavar == "FILE"]
        for action in paths:
            action.complete = shtab.FILE            # type: ignore[attr-defined]
        summary = (parser.description or "").split(". ")[0].splitlines()[0]
        verbs.add_parser(verb, parents=[parser], add_help=False, description=summary, help=summary)
    return str(shtab.complete(whole, shell))


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="twostage completion",
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    return parser
