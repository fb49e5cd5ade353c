"""configs/PHOTOS.md, "your own noisy photos in ten minutes": every command as it is printed, on a few photos.

Only the configuration file is another: smaller photos and fewer epochs, as the tests share two cores.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from data_prep.__main__ import main as data_prep
from twostage.__main__ import main as twostage

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TWOSTAGE_SHARED") or ROOT.parent / "shared") / "data" / "clothing"
GUIDE = ROOT / "configs" / "PHOTOS.md"
MISTAKES = {"pants": "shoes", "shoes": "hat", "hat": "pants"}
SMALLER = {"resize: 72": "resize: 36", "size: 64\n": "size: 32\n", "epochs: 20 ": "epochs: 2 ",
           "sub_epochs: 20": "sub_epochs: 2"}


def commands(page: Path, start: str) -> list[str]:
    """Lines of the page's shell blocks from `start` on."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text().split(start, 1)[1], re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def real_photos(folder: Path) -> None:
    """Photos of three kinds of clothes, every fourth training one in the wrong folder."""
    for name, most in (("train", 24), ("valtest", 6)):
        count: Counter[str] = Counter()
        with tarfile.open(SHARED / f"clothing-dataset-small.{name}.tar") as tar:
            for member in tar:
                *_, split, kind, file = f"///{member.name}".split("/")
                if not member.isfile() or kind not in MISTAKES or split == "validation" or count[kind] == most:
                    continue
                count[kind] += 1
                kind = MISTAKES[kind] if split == "train" and count[kind] % 4 == 0 else kind
                place = folder / split / kind / file
                place.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                place.write_bytes(content.read())


def made_up_photos(folder: Path) -> None:
    """The same number of scanned digits, where there are no photos."""
    assert data_prep(["digits", str(folder.parent / "digits")]) == 0
    for split, most in (("train", 24), ("test", 6)):
        for kind in "012":
            for number, path in enumerate(sorted((folder.parent / "digits" / split / kind).iterdir())[:most]):
                wrong = split == "train" and number % 4 == 0
                place = folder / split / ("012"[(int(kind) + 1) % 3] if wrong else kind) / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository's configurations, and photos of one's own."""
    (real_photos if SHARED.exists() else made_up_photos)(tmp_path / "my_photos")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    text = (tmp_path / "configs" / "photos.yaml").read_text()
    for known, less in SMALLER.items():
        assert known in text
        text = text.replace(known, less)
    (tmp_path / "configs" / "photos.yaml").write_text(text)
    more = tmp_path / "more_photos"
    more.mkdir()
    for path in sorted((tmp_path / "my_photos" / "test").rglob("*.*"))[:3]:
        shutil.copy(path, more)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(line: str) -> None:
    """As a shell does, but for Python programs, which are called here: they take seconds to be started."""
    words = shlex.split(line, comments=True)
    programs = {"twostage": twostage, "data_prep": data_prep}
    if words[:2] == ["python", "-m"]:
        assert programs[words[2]](words[3:]) == 0, line
    else:
        subprocess.run(line, shell=True, check=True)


@pytest.mark.slow
def test_the_guide(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {}
    for line in commands(GUIDE, "## 2. Pack"):
        execute(line)
        told[line] = capsys.readouterr().out
    first = next(text for line, text in told.items() if "--run.dir runs/first" in line and "--dry-run" not in line)
    assert first.count("% of the test images right") == 3 and "report:  runs/first/report.html" in first
    assert any("90 samples" in text or "all is well" in text for text in told.values())
    rows = (workplace / "predicted.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith('"path","predicted","probability"')
    assert (workplace / "both.html").stat().st_size > 10_000
    assert (workplace / "runs" / "first" / "labels_audit.csv").exists()
    assert (workplace / "exported" / "README.md").exists()
    assert "pretrain: already done" in next(text for line, text in told.items() if "runs/second --mine" in line)
