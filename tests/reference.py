"""Writes configs/REFERENCE.md, the page of every verb, option and field, from where each is defined.

    python -m tests.reference
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import data_prep.__main__ as prep
from twostage.commands import ALL, TAKES_FIELDS, parser_of
from twostage.fields import sections

PAGE = Path(__file__).parents[1] / "configs" / "REFERENCE.md"
HEAD = """\
# Reference

Every field of the configuration, and every verb with its options. This page is made from the definitions in the code by
`python -m tests.reference`; a test compares them.

- [The configuration](#the-configuration)
- [twostage](#twostage)
- [data_prep](#data_prep)

## The configuration

A field is set in a YAML file (`--config FILE`, sections as mappings) or on the command line
(`--pretrain.optimizer.lr=0.001`); the command line comes before the file, the file before the default.
`--print_config` prints what came of them. Unknown names and wrong types are errors.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_configuration(), *_commands()]) + "\n"


def _configuration() -> Iterator[str]:
    for section in sections():
        yield f"### {section.name}\n\n{section.meaning}\n\n| field | takes | default | |\n|---|---|---|---|"
        for field in section.fields:
            default = "must be given" if field.default is None else f"`{field.default}`"
            yield f"| `{field.name}` | {_cell(field.kind)} | {default} | {_cell(field.meaning)} |"
        yield ""


def _commands() -> Iterator[str]:
    yield "## twostage\n\n`twostage VERB`, or `python -m twostage VERB`. Exit codes are in `twostage --help`.\n"
    for verb in ALL:
        yield from _verb("twostage", verb, parser_of(verb), takes_fields=verb in TAKES_FIELDS)
    yield "## data_prep\n\n`data-prep VERB`, or `python -m data_prep VERB`.\n"
    for verb in prep.VERBS:
        yield from _verb("data_prep", verb, prep.parser_of(verb), takes_fields=False)


def _verb(program: str, verb: str, parser: argparse.ArgumentParser, *, takes_fields: bool) -> Iterator[str]:
    description = re.sub(r"^  (\S+)  +", r"- `\1`: ", str(parser.description), flags=re.MULTILINE)
    yield f"### {program} {verb}\n\n{description}\n"
    if takes_fields:
        yield "Takes every field of [the configuration](#the-configuration) as well.\n"
    yield "| argument | |\n|---|---|"
    for group in parser._action_groups:
        titled = group.title not in ("positional arguments", "options")
        if titled and group._group_actions:
            yield f"| **{_cell(group.title or '')}** | {_cell(group.description or '')} |"
        for action in group._group_actions:
            if not isinstance(action, argparse._HelpAction):
                yield f"| {_name(action)} | {_cell(parser._get_formatter()._expand_help(action))} |"
        if titled and not group._group_actions:
            yield f"| **{_cell(group.title or '')}** | {_cell(group.description or '')} |"
    yield f"\n```\n{str(parser.epilog).strip()}\n```\n"


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`" + (" …" if action.nargs in ("+", "*") else "")
    value = "" if action.nargs == 0 else f" {action.metavar or '|'.join(action.choices or [action.dest.upper()])}"
    return f"`{_cell(action.option_strings[-1] + value)}`" + (", must be given" if action.required else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
