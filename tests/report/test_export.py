"""`twostage export`: the folder is used without twostage and gives the same answers; what it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from untrained_run import AUGMENT, NAMES, write_files, write_run

from tests.data.images import encoded, noise, smooth
from twostage.__main__ import main
from twostage.config import AugmentConfig
from twostage.machine_config import LoaderConfig
from twostage.models.resnet import resnet18
from twostage.report import export as export_module

TORCHVISION = Path(__file__).parents[1] / "models" / "torchvision_resnet18.txt"


def blocks(out: Path) -> list[str]:
    """The pieces of code in a model card."""
    return re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def predicted(model: Path, photos: Path, out: Path) -> dict[str, list[object]]:
    assert main(["predict", str(model), str(photos), "--out", str(out), "--top-k", "4"]) == 0
    columns: dict[str, list[object]] = pq.read_table(out).to_pydict()
    return columns


def test_the_card_alone_gives_the_same_answers_without_twostage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    augment = AugmentConfig(channels="rgb", resize=24, size=16, mean="image", std=[0.2, 0.25, 0.3])
    run, out = write_run(tmp_path / "run", augment=augment), tmp_path / "out"
    # as many pixels as after resizing, as Pillow and DALI round differently there
    images = [encoded(noise(n, 24, 24 + n)) for n in range(5)] + [encoded(smooth(9, 30, 24), "png", orientation=6)]
    write_files(tmp_path / "photos", images)
    assert main(["export", str(run), str(out)]) == 0
    assert "model.pt2: the same answers" in capsys.readouterr().out
    expected = ["README.md", "config.json", "mean_image.safetensors", "model.onnx", "model.pt2", "model.safetensors"]
    assert files_of(out) == expected
    torch_block, onnx_block, prepare_block = blocks(out)
    assert [len(block.strip().splitlines()) for block in (torch_block, onnx_block)] == [3, 3]
    code = f"""
import sys; sys.modules["twostage"] = None
{prepare_block}
images = np.concatenate([prepared(f"{tmp_path}/photos/{{n:03d}}.jpg") for n in range(6)])
{torch_block}
import json
{onnx_block}
print(json.dumps([model(torch.from_numpy(images)).softmax(1).tolist(), logits.tolist()]))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code], cwd=out, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    by_torch, logits = (np.array(values) for values in json.loads(done.stdout))
    by_onnx = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for model in (run, out):
        found = predicted(model, tmp_path / "photos", tmp_path / "out.parquet")
        for row in range(6):
            for ending in ("", "_2", "_3", "_4"):
                number = NAMES.index(str(found[f"predicted{ending}"][row]))
                for probs in (by_torch, by_onnx):
                    assert probs[row, number] == pytest.approx(found[f"probability{ending}"][row], abs=1e-4)
    assert "`model.onnx`" in (out / "README.md").read_text()


def test_torchvision_takes_the_weights_as_the_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = AugmentConfig(resize=None, size=32)
    run, out = write_run(tmp_path / "run", name="resnet18", augment=augment, models=("train",)), tmp_path / "out"
    assert main(["export", str(run), str(out), "--without", "pt2", "--without", "onnx"]) == 0
    assert files_of(out) == ["README.md", "config.json", "model.safetensors"]
    names = {line.split()[0] for line in TORCHVISION.read_text().splitlines() if line and not line.startswith("#")}
    assert load_file(out / "model.safetensors").keys() == names
    # torchvision itself has no build that goes with a CPU torch
    stand_in = types.SimpleNamespace(models=types.SimpleNamespace(resnet18=lambda num_classes: resnet18(
        num_classes=num_classes, in_channels=3)))
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    monkeypatch.chdir(out)
    scope: dict[str, object] = {}
    assert len(blocks(out)[0].strip().splitlines()) == 3
    exec(blocks(out)[0], scope)
    sixteen_bits = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 1 << 16, (32, 32), dtype=np.uint16)).save(sixteen_bits, "PNG")
    photos = [*(encoded(noise(n, 32, 32)) for n in range(3)), sixteen_bits.getvalue()]
    files = write_files(tmp_path / "photos", photos)
    exec(blocks(out)[1], scope)
    images = np.concatenate([scope["prepared"](file) for file in files])
    with torch.no_grad():
        probs = scope["model"](torch.from_numpy(images)).softmax(1).numpy()
    found = predicted(out, tmp_path / "photos", tmp_path / "out.parquet")
    assert found == predicted(run, tmp_path / "photos", tmp_path / "out.parquet")
    assert found["predicted"] == [NAMES[c] for c in probs.argmax(1)]
    assert np.allclose(found["probability"], probs.max(1), atol=1e-4)


def test_config_says_what_was_exported(tmp_path: Path) -> None:
    names = ("cat", "a|b", "*c* `d`", "<b>")
    run, out = write_run(tmp_path / "run", class_names=names), tmp_path / "a" / "b"
    with (run / "config.yaml").open("a") as file:
        file.write("runtime: {precision: bf16}\n")
    assert main(["export", str(run), str(out), "--model", "pretrain", "--without", "onnx", "--without", "pt2"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == list(names) and config["precision"] == "bf16"
    assert config["made_from"]["model"] == "pretrain"
    shape = {"num_classes": 4, "in_channels": 3, "image_size": 16, "output_norm": False}
    assert config["architecture"] == {"name": "mlp", **shape}
    prepared = {"channels": "rgb", "resize": 20, "size": 16, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    assert config["preprocessing"].items() >= prepared.items()
    ours = load_file(run / "pretrain" / "model.safetensors")
    theirs = load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    card = (out / "README.md").read_text()
    assert "50.00 % of 1,234 images" in card and "| two-stage | 60.00 % |" in card and "(this one) | 50.00 %" in card
    assert "| a&#124;b | 50.00 % |" in card and "| &#42;c&#42; &#96;d&#96; | 50.00 % |" in card
    assert "| &lt;b&gt; | – |" in card and str(tmp_path) not in card


def test_a_card_does_not_take_the_test_of_earlier_weights(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    (run / "train" / "model.safetensors").write_bytes((run / "pretrain" / "model.safetensors").read_bytes())
    assert main(["export", str(run), str(out), "--without", "onnx", "--without", "pt2"]) == 0
    card = (out / "README.md").read_text()
    assert "| test accuracy | not evaluated |" in card and "60.00 %" not in card
    assert "| balanced cross-entropy (stage 1) | 50.00 % |" in card


def test_a_card_of_a_whole_run_tells_how_labels_were_mined(tmp_path: Path, run_dir: Path, hostile_dir: Path) -> None:
    from twostage.report.card import card
    from twostage.report.trained import Architecture, Trained

    for folder in (run_dir, hostile_dir):
        names = tuple(json.loads((folder / "evaluate" / "train" / "test.json").read_text())["class_names"])
        trained = Trained(
            architecture=Architecture("resnet14", 4, 3, 16, False), class_names=names, augment=AUGMENT,
            loader=LoaderConfig(), precision="fp32", weights=folder / "train" / "model.safetensors", digest="ab" * 32,
            mean_image=None, name="train",
        )
        text = card(folder, trained, {}, "2")
        mined = json.loads((folder / "mine" / "done.json").read_text())["results"]
        assert f"Kept: {mined['kept']:,} of {mined['images']:,} labels, {100 * mined['purity']:.2f} %" in text
        digest = json.loads((folder / "train" / "done.json").read_text())["inputs"]["dataset.samples"]
        assert digest in text and str(folder) not in text
        if folder == hostile_dir:
            assert "<script" not in text and '" onmouseover' not in text and "&lt;script&gt;" in text
            assert all(line.count("|") == 3 for line in text.splitlines() if line.startswith("|"))
        else:
            assert "| t-shirt |" in text


def test_only_an_earlier_export_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    command = ["export", str(run), str(out), "--without", "pt2", "--without", "onnx"]
    out.mkdir()
    assert main(command) == 0                           # an empty folder is nothing to lose
    first = (out / "model.safetensors").read_bytes()
    assert main([*command, "--model", "pretrain"]) == 0
    assert (out / "model.safetensors").read_bytes() != first
    assert files_of(tmp_path) == ["out", "run"]
    (out / "notes.txt").write_text("mine")
    assert main(command) == 2 and "'notes.txt' is not of it" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    for place, message in [(other, "did not write"), (run, "is or holds the run folder"),
                           (tmp_path, "is or holds the run folder"), (other / "config.json", "not a folder")]:
        assert main(["export", str(run), str(place)]) == 2
        assert message in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for place in (Path(), empty):
        assert main(["export", str(run), str(place)]) == 2
        assert "is the folder you are in, which would be replaced" in capsys.readouterr().err
    assert main(["export", str(out), str(tmp_path / "new")]) == 2
    assert "an exported folder already" in capsys.readouterr().err


def test_a_failed_export_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    assert main(["export", str(run), str(out), "--without", "pt2", "--without", "onnx"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "card", full)
    assert main(["export", str(run), str(out), "--model", "pretrain", "--without", "pt2", "--without", "onnx"]) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before and files_of(tmp_path) == ["out", "run"]


def test_dry_run_writes_nothing_and_absent_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    monkeypatch.setattr(export_module, "ONNX_PACKAGES", ("onnx_not_there",))
    assert main(["export", str(run), str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would write model.safetensors, config.json, model.pt2, README.md" in printed
    assert "onnx_not_there is not installed: pip install 'twostage[export]'" in printed and not out.exists()


class Branching(torch.nn.Module):
    """A network of the user's own that no tracer can follow."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3))
        return self.layer(mean if mean.sum().item() > 0 else -mean)


def test_own_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("own_network")
    module.Branching = Branching                            # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_network", module)
    run, out = write_run(tmp_path / "run", name="own_network:Branching"), tmp_path / "out"
    assert main(["export", str(run), str(out)]) == 2
    assert "--without pt2 --without onnx" in capsys.readouterr().err and files_of(tmp_path) == ["run"]
    assert main(["export", str(run), str(out), "--without", "pt2", "--without", "onnx"]) == 0
    write_files(tmp_path / "photos", [encoded(noise(0, 20, 20))])
    assert main(["predict", str(out), str(tmp_path / "photos")]) == 2
    assert "allow it by --own-code" in capsys.readouterr().err
    assert main(["predict", str(out), str(tmp_path / "photos"), "--own-code"]) == 0


def test_hostile_exports_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    assert main(["export", str(run), str(out), "--without", "pt2", "--without", "onnx"]) == 0
    write_files(tmp_path / "photos", [encoded(noise(0, 20, 20))])
    good = json.loads((out / "config.json").read_text())
    for section, field, value, message in [
        ("architecture", "name", "os:system", "--own-code"),
        ("architecture", "name", "mpl", "did you mean 'mlp'?"),
        ("architecture", "num_classes", 10**12, "not a whole number"),
        ("architecture", "image_size", "16", "not a whole number"),
        ("architecture", "in_channels", 1, "for a network of 1"),
        ("preprocessing", "std", [0, 1, 1], "must be more than 0"),
        ("preprocessing", "channels", "cmyk", "is damaged"),
        ("preprocessing", "mean", None, "is damaged"),
        ("preprocessing", "size", 17, "do not belong together"),
        ("", "version", 2, "this program reads version 1"),
        ("", "format", "bert", "this program reads"),
        ("", "label_names", ["a"], "do not belong together"),
        ("", "precision", "int8", "is damaged"),
    ]:
        changed = json.loads(json.dumps(good))
        (changed[section] if section else changed)[field] = value
        (out / "config.json").write_text(json.dumps(changed))
        assert main(["predict", str(out), str(tmp_path / "photos")]) == 2, (field, value)
        assert message in capsys.readouterr().err, (field, value)
    (out / "config.json").write_text("[]")
    assert main(["predict", str(out), str(tmp_path / "photos")]) == 2
    (out / "config.json").write_text(json.dumps(good))
    assert main(["predict", str(out), str(tmp_path / "photos"), "--model", "train"]) == 2
    assert "leave out --model" in capsys.readouterr().err
    (out / "model.safetensors").unlink()
    assert main(["predict", str(out), str(tmp_path / "photos")]) == 2
    assert "does not exist" in capsys.readouterr().err
