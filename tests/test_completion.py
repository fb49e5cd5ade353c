"""The scripts that complete command lines, in a real bash."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from data_prep.__main__ import VERBS as PREP_VERBS
from data_prep.__main__ import main as data_prep
from twostage.__main__ import main as twostage
from twostage.commands import ALL

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for program, main in (("twostage", twostage), ("data-prep", data_prep)):
            lines: list[str] = []
            patch.setattr("builtins.print", lines.append)
            assert main(["completion", "bash"]) == 0
            made[program] = folder / program
            made[program].write_text("\n".join(lines))
    return made


def completed(script: Path, line: str, cwd: Path) -> list[str]:
    """What bash offers for the last word of a line, where a trailing blank begins a new word."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    code = f"""
        source {script}
        COMP_WORDS=({' '.join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1} COMP_LINE={shlex.quote(line)}
        COMP_POINT=${{#COMP_LINE}}
        $(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/') {words[0]} {shlex.quote(words[-1])} ''
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout.split()


def test_verbs_options_values_and_files(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "photos.yaml").touch()
    (tmp_path / "photos").mkdir()
    script = scripts["twostage"]
    assert set(ALL) <= set(completed(script, "twostage ", tmp_path))
    assert completed(script, "twostage rep", tmp_path) == ["report", "reproduce"]
    assert completed(script, "twostage run --pretrain.optimizer.l", tmp_path) == ["--pretrain.optimizer.lr"]
    assert completed(script, "twostage run --model.class_layer ", tmp_path) == ["new", "loaded"]
    assert completed(script, "twostage plan --train.method pi", tmp_path) == ["pi_model"]
    assert set(completed(script, "twostage run --config ph", tmp_path)) == {"photos.yaml", "photos"}
    assert completed(script, "twostage predict --devi", tmp_path) == ["--device"]

    script = scripts["data-prep"]
    assert set(PREP_VERBS) <= set(completed(script, "data-prep ", tmp_path))
    assert completed(script, "data-prep build --check ", tmp_path) == ["full", "header"]
    assert set(completed(script, "data-prep build ph", tmp_path)) == {"photos.yaml", "photos"}


def test_scripts_for_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    for main, program in ((twostage, "twostage"), (data_prep, "data-prep")):
        assert main(["completion", "zsh"]) == 0
        assert capsys.readouterr().out.startswith(f"#compdef {program}")
        assert main(["completion", "fish"]) == 2
        assert "bash" in capsys.readouterr().err
