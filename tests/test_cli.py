"""What a user sees of wrong command lines and configuration files."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

import data_prep.__main__ as prep
from twostage.__main__ import main
from twostage.cli import parse
from twostage.commands import ALL, TAKES_FIELDS, parser_of
from twostage.data.schema import InputError

REQUIRED = ["--run.dir", "r", "--data.dataset", "d"]


def write(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return ["--config", str(path), *REQUIRED]


def test_precedence_is_command_line_then_file_then_default(tmp_path: Path) -> None:
    arguments = write(tmp_path, "pretrain: {epochs: 3, batch_size: 32}\nmine: {min_score: 0.8}\n")
    config = parse("run", "", [*arguments, "--pretrain.epochs", "5"])
    assert (config.pretrain.epochs, config.pretrain.batch_size, config.mine.min_score) == (5, 32, 0.8)
    assert config.mine.min_share == 0.1


@pytest.mark.parametrize("joined", [False, True])
def test_the_command_line_wins_wherever_the_file_is_named_on_it(tmp_path: Path, joined: bool) -> None:
    """Batch scripts put it behind the options."""
    option, path, *_ = write(tmp_path, "pretrain: {epochs: 3}\ndata: {dataset: of_the_file}\n")
    file = [f"{option}={path}"] if joined else [option, path]
    config = parse("run", "", ["--data.dataset", "given", "--pretrain.epochs=5", *file, "--run.dir", "r"])
    assert (config.pretrain.epochs, str(config.data.dataset)) == (5, "given")


def test_nested_sections_arrive_as_their_classes(tmp_path: Path) -> None:
    config = parse("run", "", write(tmp_path, "train: {optimizer: {name: sgd, lr: 0.5}, plateau: {stop_after: null}}"))
    assert config.train.optimizer.name == "sgd" and config.train.optimizer.lr == 0.5
    assert config.train.plateau.stop_after is None and config.pretrain.optimizer.name == "adam"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretrain: {epochz: 3}", r"c\.yaml: unknown key 'pretrain\.epochz'; did you mean 'pretrain\.epochs'\?"),
        ("trian: {sub_epochs: 3}", r"unknown key 'trian'; did you mean 'train'\?"),
        ("train: {optimizer: {lrr: 3}}", r"did you mean 'train\.optimizer\.lr'\?"),
        ("pretrain: {epochs: many}", r"pretrain\.epochs.*int.*many"),
        ("model: {dropout: [1]}", r"model\.dropout"),
        ("train: {reduction: average}", r"train\.reduction.*sum.*mean.*average"),
        ("- 1", "expected sections"),
        ("a: b: c", "is not YAML"),
        ("pretrain: {epochs: 7}\nmine: {}\npretrain: {batch_size: 16}", "'pretrain' comes twice.*line 3"),
        ("pretrain: {epochs: 7, epochs: 8}", "'epochs' comes twice"),
        ("train:\n  # sub_epochs: 3\nmine: {min_score: 0.8}", r"c\.yaml: section 'train' is empty: remove"),
        ("train: 3", "section 'train' is 3: remove the line, or give it fields"),
        ("train: {optimizer: }", r"section 'train\.optimizer' is empty"),
        ("train.optimizer: [adam]", r"section 'train\.optimizer' is \['adam'\]"),
        ("train.sub_epochs: 4\ntrain: {sub_epochs: 3}", r"'train\.sub_epochs' stands beside its section 'train'"),
        ("train: {optimizer: {name: sgd}, optimizer.lr: 2}", r"'train\.optimizer\.lr' .* section 'train\.optimizer'"),
    ],
)
def test_wrong_files_name_the_key_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse("run", "", write(tmp_path, text))


def test_fields_may_stand_by_their_full_names(tmp_path: Path) -> None:
    config = parse("run", "", write(tmp_path, "train.sub_epochs: 4\npretrain: {optimizer.lr: 0.5}\nmine: {}"))
    assert (config.train.sub_epochs, config.pretrain.optimizer.lr) == (4, 0.5)


def test_a_pipe_is_refused_with_the_reason(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"pipe is no regular file, .* once: save it in a file"):
        parse("run", "", ["--config", str(pipe), *REQUIRED])


def test_wrong_command_lines_end_with_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in [
        (["runn"], "did you mean 'run'?"),
        (["run", *REQUIRED, "--pretrain.epoch", "3"], "did you mean 'pretrain.epochs'?"),
        (["run", "--config", "nowhere.yaml"], "no such configuration file: nowhere.yaml"),
        (["run", "--config", "."], "--config . is a folder: name a YAML file"),
        (["run", "--run.dir", "x"], "data.dataset; give them, or a file by --config"),
        (["mine", *REQUIRED], "run `twostage rank` first"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and "Traceback" not in error


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, "error: no such configuration file: missing.yaml\n"),
        ({"RANK": "2", "LOCAL_RANK": "0"}, f"error: rank 2 on {os.uname().nodename}: no such configuration file"),
        ({"RANK": "2"}, f"error: rank 2 on {os.uname().nodename}: no such configuration file"),
        ({"RANK": "3", "LOCAL_RANK": "1"}, ""),
    ],
    ids=["first", "first of another machine", "by hand", "not alone on its machine"],
)
def test_before_the_ranks_meet_one_of_each_machine_says_what_is_wrong(
    own: dict[str, str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"WORLD_SIZE": "4", **own}.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "--config", "missing.yaml"]) == 2
    found = capsys.readouterr().err
    assert found.startswith(said) and bool(found) == bool(said)


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--run.dir PATH the run folder; running again" in text and "default: 100.0" in text
    assert "weight of the consistency loss" in text and "every random number of the run follows" in text


def examples() -> list[tuple[str, str, list[str]]]:
    """Program, verb and arguments of every example in a help: of a line, what comes before an explanation."""
    found = []
    for program, verbs, parser in (("twostage", ALL, parser_of), ("data_prep", prep.VERBS, prep.parser_of)):
        for verb in verbs:
            text = str(parser(verb).epilog)
            assert text.startswith("examples:"), f"{program} {verb} --help has no examples"
            for line in text.splitlines():
                command = re.match(r"  (?:twostage|python -m data_prep) (\S+) (.*?)(?:   .*| > .*)?$", line)
                if command is not None:
                    found.append((program, command[1], shlex.split(command[2].split("  ")[0], comments=True)))
    return found


@pytest.mark.parametrize(("program", "verb", "arguments"), examples())
def test_every_example_is_a_legal_command(
    program: str, verb: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    arguments = [word.replace("FILE", "configs/photos.yaml") if word == "FILE" else word for word in arguments]
    parser = (parser_of if program == "twostage" else prep.parser_of)(verb)
    known, fields = parser.parse_known_args(arguments)
    if program == "twostage" and verb in TAKES_FIELDS:
        config = ["--config", known.config] if getattr(known, "config", None) else []
        parse(verb, "", [*config, *fields, *REQUIRED])
    else:
        assert not fields


def test_there_are_examples_of_all_verbs() -> None:
    shown = {(program, verb) for program, verb, _ in examples()}
    assert shown >= {("twostage", verb) for verb in ALL if verb != "completion"}
    assert shown >= {("data_prep", verb) for verb in prep.VERBS if verb != "completion"}


def test_print_config_is_a_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write(tmp_path, "train: {optimizer: {lr: 0.5}}\naugment: {mean: image}")
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments, "--mine.min_score=0.7", "--print_config"])
    assert stop.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    again = parse("train", "", ["--config", str(tmp_path / "printed.yaml")])
    assert again == parse("train", "", [*arguments, "--mine.min_score=0.7"]) and again.train.optimizer.lr == 0.5


CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_configuration_file_is_legal(path: Path) -> None:
    config = parse("run", "", ["--config", str(path), *REQUIRED])
    assert config.run.dir == Path("r")
    command = path.read_text().split("run:", 1)[0]
    assert command.startswith("#") and ("python -m" in command or "make" in command), "its head should say its use"
