"""All verbs of `twostage`: where each is done, and its command line as an argparse parser."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable
from typing import Final

from twostage.cli import Formatter, Parser, examples_of
from twostage.fields import sections
from twostage.verbs import VERBS

# Verbs with a command line of their own, as they are about finished runs or about many: module, function, parser.
OF_FOLDERS: Final = {
    "plan": ("twostage.forecast.command", "plan", "make_parser"),
    "report": ("twostage.report.command", "report", "report_parser"),
    "audit": ("twostage.report.command", "audit", "audit_parser"),
    "predict": ("twostage.report.predict", "predict", "make_parser"),
    "export": ("twostage.report.export", "export", "make_parser"),
    "runs": ("twostage.report.runs", "runs", "make_parser"),
    "reproduce": ("twostage.reproduce.command", "main", "make_parser"),
    "doctor": ("twostage.doctor", "doctor", "make_parser"),
    "completion": ("twostage.completion", "completion", "make_parser"),
}
TAKES_FIELDS: Final = (*VERBS, "plan")
"""verbs that read a configuration"""
ALL: Final = (*VERBS, *OF_FOLDERS)


def function_of(verb: str) -> Callable[[list[str]], int]:
    """What does a verb of OF_FOLDERS."""
    module, name, _ = OF_FOLDERS[verb]
    function: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
    return function


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The command line of a verb; of one that reads a configuration, without its fields: see `sections`."""
    if verb in OF_FOLDERS:
        module, _, name = OF_FOLDERS[verb]
        parser: argparse.ArgumentParser = getattr(importlib.import_module(module), name)()
        return parser
    parser = Parser(
        prog=f"twostage {verb}",
        description=str(VERBS[verb].__doc__),
        epilog=examples_of(verb),
        formatter_class=Formatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the configuration's fields")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration, and do nothing")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, do nothing")
    return parser


def add_fields(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    """Adds every field of the configuration as an option, for help and completion; returns those that take a path."""
    if "--config" not in parser._option_string_actions:
        yield parser.add_argument("--config", help="YAML file with any of the configuration's fields")
    for section in sections():
        group = parser.add_argument_group(section.name, section.meaning)
        for field in section.fields:
            default = "must be given" if field.default is None else f"default: {field.default}"
            action = group.add_argument(
                f"--{field.name}",
                choices=field.choices or None,
                metavar=None if field.choices else field.kind.upper() if field.kind.isalpha() else "VALUE",
                help=f"{field.meaning} ({default})".replace("%", "%%"),
            )
            if field.is_path:
                yield action


def print_help(verb: str) -> None:
    """The help of a verb that reads a configuration, its fields included."""
    parser = parser_of(verb)
    parser.usage = f"twostage {verb} --config FILE [--section.field=VALUE ...] [--dry-run] [--print_config]"
    list(add_fields(parser))
    parser.print_help()
