"""From the command line and a YAML file to a checked Config."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn, get_type_hints

import jsonargparse
import yaml

from twostage.config import Config
from twostage.data.schema import InputError, nearest

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


EXAMPLES: Final = {
    "run": """\
  twostage run --config configs/photos.yaml --data.dataset my_dataset --run.dir runs/first
  twostage run --config configs/photos.yaml --data.dataset my_dataset --run.dir runs/second --train.sub_epochs=40
  accelerate launch --config_file launch/accelerate/cpu-2.yaml -m twostage run --config configs/photos.yaml
""",
    "clean_filter": """\
  twostage clean_filter --config configs/clothing1m/row08.yaml --data.dataset data/clothing1m
""",
    "mine": """\
  twostage mine --config configs/photos.yaml --data.dataset my_dataset --run.dir runs/first --mine.min_score=0.8
""",
    "finetune": """\
  twostage finetune --config configs/clothing1m/row12.yaml --data.dataset data/clothing1m
""",
    "baselines": """\
  twostage baselines --config FILE --run.baselines=[cross_entropy,forward]
""",
}


def examples_of(verb: str) -> str:
    """The end of the help of a verb that reads a configuration."""
    own = EXAMPLES.get(verb, f"  twostage {verb} --config configs/photos.yaml --run.dir runs/first\n")
    return f"""examples:
{own}\
  twostage {verb} --config FILE --dry-run         check everything and say what would be done
  twostage {verb} --config FILE --print_config    the resolved configuration

fields come from the command line, then the file, then the defaults; configs/REFERENCE.md lists all of them
"""


class Formatter(argparse.HelpFormatter):
    """Leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Of verbs that have a command line of their own: mistakes come out like all others, as one line."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage and leaving."""
        raise InputError(f"{message}; see {self.prog} --help")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Parses a command line.

        Raises:
            InputError: an argument is missing, wrong or unknown (names the nearest option).
        """
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            options = {option for action in self._actions for option in action.option_strings}
            raise InputError(f"{self.prog}: unknown argument {unknown[0]!r}; {nearest(unknown[0], options)}")
        return args


def parse(verb: str, description: str, arguments: list[str]) -> Config:
    """Fills a Config from `arguments`, the files they name by --config, and the defaults, in this precedence.

    Raises:
        InputError: an unknown key (names the nearest), a value of the wrong type, a required field left out.
    """
    _check_names(arguments)
    arguments = _files_first(arguments)
    try:
        parsed = _parser(verb, description).parse_args(arguments)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        if "arguments are required" in message:
            message += f"; give them, or a file by --config, configs/photos.yaml say; see twostage {verb} --help"
        raise InputError(message) from error
    config: Config = _build(Config, parsed)
    return config


@functools.cache
def _parser(verb: str, description: str) -> jsonargparse.ArgumentParser:
    """Kept, as `reproduce` parses many times, and making one takes a tenth of a second."""
    parser = jsonargparse.ArgumentParser(
        prog=f"twostage {verb}",
        description=description,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    parser.add_class_arguments(Config)
    return parser


def _build(kind: type[Any], values: Any) -> Any:
    hints = get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        value = getattr(values, field.name)
        fields[field.name] = _build(hints[field.name], value) if dataclasses.is_dataclass(hints[field.name]) else value
    return kind(**fields)


def _files_first(arguments: list[str]) -> list[str]:
    """The arguments with --config before all others: the parser lets what comes later win, a file too."""
    files: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            files += [argument, *islice(rest, 1)]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    return files + others


def _check_names(arguments: list[str]) -> None:
    """Refuses unknown keys with the nearest legal one, which the parser's own messages do not name."""
    known = keys(Config)
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name = argument[2:].split("=", 1)[0].removesuffix("+")
            if name not in known | {"config", "help"} and not name.startswith("print_"):
                raise InputError(f"unknown option --{name}; {_nearest_key(name, known)}")
            if name == "config":
                rest = argument.split("=", 1)[1:] or arguments[position + 1 : position + 2]
                if rest:
                    _check_file(Path(rest[0]), known)


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML's own takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As of SafeLoader.

        Raises:
            yaml.MarkedYAMLError: a key comes twice; names it and its line.
        """
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} comes twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_file(path: Path, known: set[str]) -> None:
    if not path.exists():
        raise InputError(f"no such configuration file: {path}")
    if path.is_dir():
        raise InputError(f"--config {path} is a folder: name a YAML file, configs/photos.yaml say")
    if not path.is_file():      # it is read twice: here and by the parser
        raise InputError(f"--config {path} is no regular file, and a pipe can be read only once: save it in a file")
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected sections such as `pretrain:`, found {type(tree).__name__}")
    pending = [("", tree)]
    while pending:
        prefix, branch = pending.pop()
        for name, value in branch.items():
            key = f"{prefix}{name}"
            if key not in known:
                raise InputError(f"{path}: unknown key {key!r}; {_nearest_key(key, known)}")
            section = next((section for section in _sections_of(str(name)) if section in branch), None)
            if section is not None:     # the parser would take the later one alone
                raise InputError(f"{path}: {key!r} stands beside its section {prefix + section!r}: move it into that")
            if isinstance(value, dict):
                pending.append((f"{key}.", value))
            elif any(field.startswith(f"{key}.") for field in known):
                found = "is empty" if value is None else f"is {value!r}"
                raise InputError(f"{path}: section {key!r} {found}: remove the line, or give it fields")


def _sections_of(name: str) -> list[str]:
    """Of train.optimizer.lr: train and train.optimizer."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _nearest_key(name: str, known: set[str]) -> str:
    section = name.rpartition(".")[0]
    siblings = {key for key in known if key.rpartition(".")[0] == section}
    return nearest(name, siblings or known)


def keys(kind: type[Any], prefix: str = "") -> set[str]:
    """Full names of all sections and fields of a configuration."""
    found: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        found.add(prefix + name)
        if dataclasses.is_dataclass(hint):
            found |= keys(hint, f"{prefix}{name}.")     # type: ignore[arg-type]
    return found


def is_main_process() -> bool:
    """Whether this process should speak for all; known before any process group exists."""
    return os.environ.get("RANK", "0") == "0"
