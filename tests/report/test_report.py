"""The report of one run: it stands alone, its names are inert, its figures are those of the files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import HOSTILE, HOSTILE_KEY, NAMES
from fake_run import make_dataset, make_run
from page import Element, inner_svgs, parse

from twostage.data import schema
from twostage.report import gallery, html
from twostage.report.audit import audit_table, open_judged
from twostage.report.collect import Run, collect, command
from twostage.report.command import report
from twostage.report.figures import COLOURS, Line, Picture, curve_panel, ranking_panel
from twostage.report.tables import number, percent, points, shade

REPORT = Path(html.__file__).parent
ADDRESSES = ("src", "href", "srcset", "action", "formaction", "data", "poster", "background", "ping", "xlink:href")


def page_of(run: Path) -> str:
    return html.render(collect(run))


@pytest.fixture(scope="module")
def plain_text(run_dir: Path) -> str:
    return page_of(run_dir)


@pytest.fixture(scope="module")
def plain(plain_text: str) -> Element:
    return parse(plain_text)


@pytest.fixture(scope="module")
def hostile(hostile_dir: Path) -> str:
    return page_of(hostile_dir)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A run to damage; curves are left out of its pages, as they take most of the time."""
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = Picture("data:image/png;base64,", "a picture")
    for name in ("curve_panel", "ranking_panel"):
        monkeypatch.setattr(html, name, lambda *_, **__: blank)


# ------------------------------------------------------------------------------------------------- it stands alone


@pytest.mark.parametrize("which", ["plain", "hostile"])
def test_nothing_is_loaded_from_anywhere(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which)
    page = parse(page) if isinstance(page, str) else page
    for element in page.all():
        for name in ADDRESSES:
            address = element.attributes.get(name, "#")
            assert address.startswith(("#", "data:")), f"<{element.name} {name}={address[:60]}>"
        assert element.name not in ("script", "iframe", "object", "embed", "base", "form", "frame", "svg")
        assert "url(" not in element.attributes.get("style", "")
    (style,) = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text
    for svg in inner_svgs(page):
        addresses = re.findall(r'(?:href|src)\s*=\s*"([^"]*)"|url\(([^)]*)\)', svg)
        assert all(target.startswith("#") for pair in addresses for target in pair if target)
        assert "<script" not in svg and "@import" not in svg
    (policy,) = [e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"].startswith("default-src 'none'; img-src data:;")


def test_every_link_leads_somewhere(plain: Element) -> None:
    ids = [e.attributes["id"] for e in plain.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    targets = {e.attributes["href"][1:] for e in plain.all("a")}
    assert targets <= set(ids) and len(targets) == 10
    named = {e.attributes["aria-labelledby"] for e in plain.all() if "aria-labelledby" in e.attributes}
    assert named <= set(ids) and len(named) == len(plain.all("section"))


def test_names_are_inert(hostile: str) -> None:
    page = parse(hostile)
    assert not page.all("script")
    assert not [name for e in page.all() for name in e.attributes if name.startswith("on")]
    headers = [row[0] for row in page.table("Test accuracy by class")[1:]]
    assert headers == list(HOSTILE), "a name is not shown as it is"
    assert HOSTILE_KEY.format(178) in " ".join(e.attributes.get("title", "") for e in page.all("li"))
    assert "# </pre><script>alert(4)</script>" in " ".join(e.text for e in page.all("pre"))
    assert " 49 " not in page.text, "a name was taken for a template"


def test_the_same_files_give_the_same_bytes_and_need_no_torch(run_dir: Path, plain_text: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from twostage.report.command import audit, report; "
    code += "report([sys.argv[1], '--out', 'page.html']); audit([sys.argv[2]])"
    run = shutil.copytree(run_dir, tmp_path / "run")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": str(REPORT.parents[1])}
    arguments = [sys.executable, "-c", code, str(run_dir), str(run)]
    subprocess.run(arguments, check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert (tmp_path / "page.html").read_bytes() == plain_text.encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "run"], "something was left aside"


def test_stays_below_ten_megabytes(tmp_path: Path, quick: None) -> None:
    """As many classes as are shown, thumbnails that nothing can make small; a panel has 25 kB at most, see below."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(html.MAX_CLASSES_SHOWN + 10))
    noisy = np.repeat(np.arange(len(names)), 20)
    clean = np.where(np.arange(len(noisy)) % 2, noisy, (noisy + 1) % len(names))
    images = [_noise_jpeg(rng) for _ in range(30)]
    make_dataset(tmp_path / "dataset", [images[k % 30] for k in range(len(noisy))], [str(k) for k in range(len(noisy))])
    make_run(tmp_path / "run", tmp_path / "dataset", names, clean, noisy)
    page = page_of(tmp_path / "run")
    assert len(parse(page).with_id("gallery").all("img")) > 300
    assert "10 more are in the table above" in page
    assert len(page.encode()) + (html.MAX_CLASSES_SHOWN + 13) * 25_000 < 10_000_000


def _noise_jpeg(rng: np.random.Generator) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_panels_are_small_however_long_the_training(plain: Element) -> None:
    steps, rng = np.arange(200_000, dtype=np.float64), np.random.default_rng(0)
    curve = curve_panel([Line(name, steps, rng.random(len(steps)), "blue") for name in "ab"], title="Loss")
    scores = rng.random(100_000).astype(np.float32)
    ranking = ranking_panel(scores, scores > 0.9, scores > 0.5, 0.9, class_name="hat")
    assert len(ranking.src) < 25_000 and len(curve.src) < 50_000
    assert max(len(e.attributes["src"]) for e in plain.with_id("curves").all("img")) < 25_000


def test_all_files_of_the_page_are_packaged() -> None:
    project = tomllib.loads((REPORT.parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["twostage.report"]
    for path in REPORT.iterdir():
        if path.suffix != ".py" and path.is_file():
            assert any(fnmatch(path.name, pattern) for pattern in patterns), f"{path.name} is not in the wheel"


# ------------------------------------------------------------------------------------------- figures are the files'


def shown(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def test_headline_figures(plain: Element, run_dir: Path) -> None:
    tests = {m: json.loads((run_dir / "evaluate" / m / "test.json").read_text())
             for m in ("baseline_cross_entropy", "pretrain", "train")}
    rows = plain.table("Test accuracy of the models")[1:]
    assert [row[0] for row in rows] == ["cross-entropy", "balanced cross-entropy (stage 1)", "two-stage"]
    assert [row[1] for row in rows] == [shown(t["accuracy"], 2) for t in tests.values()]
    base = tests["baseline_cross_entropy"]["accuracy"]
    gains = [f"{100 * (t['accuracy'] - base):+.1f}".replace("-", "−") for t in tests.values()]
    assert [row[4] for row in rows] == ["–", *gains[1:]]
    lede = next(e for e in plain.all("p") if e.attributes.get("class") == "lede").text
    assert lede.startswith(f"Two-stage gets {shown(tests['train']['accuracy'])} of the test images right, ")


def test_interval_is_that_of_wilson(plain: Element, run_dir: Path) -> None:
    """Its ends are where a test of this share at 95 % just fails."""
    test = json.loads((run_dir / "evaluate" / "train" / "test.json").read_text())
    n, share = test["num_samples"], test["accuracy"]
    grid = np.linspace(0, 1, 100_001)
    inside = grid[np.abs(share - grid) <= 1.959964 * np.sqrt(grid * (1 - grid) / n)]
    low, high = plain.table("Test accuracy of the models")[-1][3].split(" – ")
    assert (float(low), float(high)) == (round(100 * inside[0], 1), round(100 * inside[-1], 1))


def test_accuracy_of_each_class(plain: Element, run_dir: Path) -> None:
    tests = [json.loads((run_dir / "evaluate" / m / "test.json").read_text())
             for m in ("baseline_cross_entropy", "pretrain", "train")]
    table = plain.table("Test accuracy by class")
    assert table[0][:5] == ["class", "test images", "cross-entropy", "stage 1", "two-stage"]
    for c, row in enumerate(table[1:]):
        assert row[:5] == [NAMES[c], "36", *(shown(t["per_class"][c]) for t in tests)]
        gain = tests[2]["per_class"][c] - tests[0]["per_class"][c]
        assert row[6].replace("−", "-").replace("±", "+") == f"{100 * gain:+.1f}"


def test_labels_kept(plain: Element, run_dir: Path) -> None:
    classes = pq.read_table(run_dir / "mine" / "classes.parquet").to_pylist()
    for row, cells in zip(classes, plain.table("Labels kept by class")[1:], strict=True):
        assert cells[:4] == [row["name"], str(row["images"]), str(row["consistent"]), str(row["kept"])]
        assert cells[5:] == [shown(row["kept"] / row["images"]), shown(row["purity"]), shown(row["coverage"]),
                             f"{row['threshold']:.3f}"]
    mined = json.loads((run_dir / "mine" / "done.json").read_text())["results"]
    text = plain.with_id("seeds").text
    assert f"{mined['kept']} of {mined['images']} ({shown(mined['kept'] / mined['images'])})" in text
    assert f"Of those kept, {shown(mined['purity'])} are right" in text
    ranked = audit_table(open_judged(run_dir)).to_pylist()
    rejected = [row["clean"] != row["label"] for row in ranked if not row["kept"] and not row["held_out"]]
    assert f"Of those rejected, {shown(sum(rejected) / len(rejected))} are indeed wrong" in text
    sizes = [row["images"] for row in classes]
    assert f"Most labels: {NAMES[int(np.argmax(sizes))]} ({max(sizes)}); fewest: " in text
    assert f"{max(sizes) / min(sizes):.1f} to 1" in text


def test_purity_is_the_one_that_mining_noted(copy: Path, quick: None) -> None:
    """It is exact where the truth of some labels is not known; the classes' figures would not add up to it."""
    done = json.loads((copy / "mine" / "done.json").read_text())
    done["results"]["purity"] = 0.1234
    schema.write_json(copy / "mine" / "done.json", done)
    assert "Of those kept, 12.3 % are right" in parse(page_of(copy)).text


def test_numbers_are_written_for_people() -> None:
    assert [points(v) for v in (0.1234, -0.05, 0.0004, -0.0004, None, float("nan"))] == [
        "+12.3", "−5.0", "±0.0", "±0.0", "–", "–"
    ]
    assert [percent(v) for v in (0.5, None, float("nan"))] == ["50.0\u202f%", "–", "–"]
    assert [number(v) for v in (1234567, None)] == ["1,234,567", "–"]


def test_no_cell_is_half_coloured() -> None:
    """On 0.53 to 0.88 of the colour neither text has enough contrast; computed from the page's colours."""
    shades = [shade(value) for value in np.linspace(0, 1.8, 1000)]
    assert shades == sorted(shades) and shades[0] == 0 and shades[-1] == pytest.approx(1)
    assert not [value for value in shades if 0.53 < value < 0.879]


def test_confusion_of_the_test(plain: Element, run_dir: Path) -> None:
    for model, title in (("baseline_cross_entropy", "cross-entropy"), ("train", "two-stage")):
        confusion = json.loads((run_dir / "evaluate" / model / "test.json").read_text())["confusion"]
        (region,) = [e for e in plain.with_id("confusion").all() if e.attributes.get("aria-label") == title]
        for c, row in enumerate(region.all("tbody")[0].all("tr")):
            cells = row.all("td")
            numbers = [cell.attributes["title"].rpartition(": ")[2] for cell in cells]
            assert numbers == [str(n) for n in confusion[c]]
            percents = [str(round(100 * n / sum(confusion[c]))) if n else "·" for n in confusion[c]]
            assert [cell.text for cell in cells] == percents


def test_gallery_shows_the_surest_kept_and_the_least_likely_rejected(plain: Element, run_dir: Path) -> None:
    tables = [pq.read_table(part) for part in sorted((run_dir / "rank").glob("part-*"))]
    rows = [row for table in tables for row in table.drop_columns(["probs"]).to_pylist() if not row["held_out"]]
    seeds = set(pq.read_table(run_dir / "mine" / "seeds.parquet")["index"].to_pylist())
    strips = plain.with_id("gallery").all("article")
    assert [strip.all("h3")[0].text for strip in strips] == list(NAMES)
    for c, strip in enumerate(strips):
        kept, rejected = strip.all("ul")
        ours = [row for row in rows if row["label"] == c]
        best = sorted((r for r in ours if r["index"] in seeds), key=lambda r: (-r["score"], r["index"]))
        worst = sorted((r for r in ours if r["index"] not in seeds), key=lambda r: (r["score"], r["index"]))
        for listed, expected in ((kept, best), (rejected, worst)):
            keys = [item.attributes["title"] for item in listed.all("li")]
            assert keys == [f"photos/{row['index']}.png" for row in expected[: gallery.MAX_PER_CLASS]]
        assert rejected.all("li")[0].text.startswith(f"→ {NAMES[worst[0]['predicted']]}")
        alt = rejected.all("img")[0].attributes["alt"]
        assert alt == (f"photos/{worst[0]['index']}.png: labelled {NAMES[c]}, stage 1 says "
                       f"{NAMES[worst[0]['predicted']]}")


def test_commands_configuration_and_digests(plain: Element, run_dir: Path) -> None:
    section = plain.with_id("reproduce")
    commands = section.all("pre")[0].text
    assert "twostage run --config configs/demo/digits.yaml" in commands and "made by hand" in commands
    assert (run_dir / "config.yaml").read_text().split() == section.all("pre")[1].text.split()
    digests = dict(plain.table("Digests"))
    assert digests["train/model.safetensors"] == schema.file_digest(run_dir / "train" / "model.safetensors")
    dataset = Path(yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["dataset"])
    assert digests["dataset.samples"] == schema.file_digest(dataset / "samples.parquet")
    assert dict(plain.table("Environment"))["packages.torch"] == "2.10"


@pytest.mark.parametrize(
    ("started", "shown_as"),
    [
        ("/opt/x/twostage/__main__.py run --config 'my file.yaml'", "twostage run --config 'my file.yaml'"),
        ("/opt/x/bin/twostage run", "twostage run"),
        ("train.py --mine", "train.py --mine"),
        ("'unbalanced", ""),
        (None, ""),
    ],
)
def test_the_command_is_one_that_others_can_type(started: str | None, shown_as: str) -> None:
    assert command(Run(Path(), environment={"command": started})) == shown_as


def test_only_a_loss_gets_a_logarithmic_axis() -> None:
    line = Line("a", np.arange(1, 50.0), 100 / np.arange(1, 50.0), "blue")
    ticks = {scale: re.findall(r">([\d.]+)</text>", svg_of(curve_panel([line], title="t", scale=scale)))
             for scale in ("loss", "number")}
    assert {"10", "100"} <= set(ticks["loss"]) and ticks["loss"].count("0") == 1       # of the steps
    assert ticks["number"].count("0") == 2 and "75" in ticks["number"]


def svg_of(picture: Picture) -> str:
    (svg,) = inner_svgs(parse(f'<img src="{picture.src}">'))
    return svg


def test_every_picture_has_words(plain: Element) -> None:
    images = plain.all("img")
    assert len(images) > 4 + 10 and all(len(image.attributes["alt"]) > 20 for image in images)
    curve = next(i.attributes["alt"] for i in images if i.attributes["alt"].startswith("Validation accuracy, stage 2"))
    assert re.search(r"two-stage: from [\d.]+ % to [\d.]+ %, lowest [\d.]+ %, highest [\d.]+ %, over 240 steps", curve)


# ---------------------------------------------------------------------------------- what is missing or damaged is said


def remove(*names: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(text) and None


def change_config(section: str, name: str, value: Any) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config[section][name] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config))

    return act


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("evaluate"), "No model has been tested yet: run `twostage run` again"),
        (remove("train", "evaluate/train"), "Stage 2 has no result yet"),
        (remove("evaluate/baseline_cross_entropy"), "No baseline was tested"),
        (remove("mine"), "No labels have been mined yet"),
        (remove("rank"), "No complete ranking, so there are no ranking curves and no gallery"),
        (remove("rank/done.json"), "No complete ranking"),
        (remove("rank/part-00001-of-00002.parquet"), "rank cannot be read: "),
        (write("rank/part-00000-of-00002.parquet", "no table"), "part-00000-of-00002.parquet"),
        (write("mine/classes.parquet", "no table"), "mine/classes.parquet cannot be read"),
        (write("mine/seeds.parquet", "no table"), "mine/seeds.parquet cannot be read"),
        (write("mine/done.json", "[1]"), "mine/done.json cannot be read"),
        (write("evaluate/train/test.json", "{"), "evaluate/train/test.json cannot be read"),
        (write("evaluate/train/test.json", '{"accuracy": 0.5, "per_class": [1], "class_names": []}'), "per_class has"),
        (write("config.yaml", "a: b: c"), "config.yaml is missing or damaged"),
        (remove("config.yaml"), "config.yaml names no dataset, so there are no thumbnails"),
        (write("environment.json", "[]"), "There is no environment.json"),
        (write("pretrain/metrics.jsonl", '{"step": 1, "train/lo'), "Learning curves"),
        (remove("train/metrics.jsonl", "pretrain/metrics.jsonl", "baseline_cross_entropy/metrics.jsonl"), "No metrics"),
        (change_config("data", "clean_labels", None), "No clean labels"),
        (change_config("data", "clean_labels", "nothing"), "has no label column 'nothing'"),
        (change_config("data", "dataset", "elsewhere"), "The dataset cannot be opened, so there are no thumbnails"),
        (remove("pretrain", "evaluate/pretrain"), "two-stage"),
    ],
)
def test_what_is_missing_is_said(copy: Path, quick: None, damage: Callable[[Path], None], said: str) -> None:
    damage(copy)
    text = parse(page_of(copy)).text
    assert said in text
    assert "Result" in text and "How wrong the labels are" in text, "the rest of the page is gone"


def test_without_a_test_split_the_validation_accuracy_is_shown(copy: Path, quick: None) -> None:
    shutil.rmtree(copy / "evaluate")
    accuracies = {"baseline_cross_entropy": 0.81, "pretrain": 0.84, "train": 0.925}
    models = {name: {"title": name, "val_accuracy": accuracy} for name, accuracy in accuracies.items()}
    schema.write_json(copy / "summary.json", {"models": models})
    page = parse(page_of(copy))
    assert "There is no test split" in page.text
    for advice in ("Stage 2 has no result yet", "No baseline was tested", "been tested"):
        assert advice not in page.text
    rows = page.table("Validation accuracy of the models")[1:]
    assert [row[1] for row in rows] == ["81.00 %", "84.00 %", "92.50 %"] and rows[2][0] == "two-stage"


NOISY, KEPT = "labels that are as noisy as those trained on", "the held-out labels that stage 1 kept"
CLEAN, SPLIT = "labels of the clean set that were held out", "the validation split, whose labels are as noisy as those"


@pytest.mark.parametrize(
    ("holdout", "refined", "more", "first", "second"),
    [
        (0.1, True, (), f"Validated on {NOISY}. Acc", f"Validated on {KEPT}. Accuracies on different labels are not"),
        (0.1, False, (), f"Validated on {NOISY}.", f"Validated on {NOISY}."),
        (None, False, ("finetune",), f"Validated on {SPLIT}", f"Validated on {SPLIT}"),
        (0.1, True, ("finetune", "baseline_improved_baseline", "baseline_bottom_up", "baseline_pseudo_label_clean"),
         f"Validated on {NOISY}: cross-entropy, balanced cross-entropy (stage 1); on {KEPT}: improved baseline; on "
         f"{CLEAN}: bottom-up noise layer.",
         f"Validated on {CLEAN}: pseudo-labels, only the clean set labeled, fine-tuned on the clean set; on {KEPT}: "
         "two-stage."),
    ],
    ids=["refined", "not refined", "a validation split", "with a clean set"],
)  # fmt: skip
def test_it_says_which_labels_each_model_was_validated_on(
    copy: Path, quick: None, holdout: float | None, refined: bool, more: tuple[str, ...], first: str, second: str
) -> None:
    change_config("data", "holdout", holdout)(copy)
    (copy / "mine" / "val.parquet").unlink()
    if refined:
        pq.write_table(pq.read_table(copy / "mine" / "seeds.parquet"), copy / "mine" / "val.parquet")
    for model in more:
        (copy / model).mkdir()
        shutil.copy(copy / "train" / "metrics.jsonl", copy / model / "metrics.jsonl")
    text = " ".join(parse(page_of(copy)).with_id("curves").text.split())
    one, two = text.split("Stage 2", 1)
    assert first in one and second in two
    assert ("not to be compared" in text) == refined


@pytest.mark.parametrize("weights", ["trained again", None], ids=["trained again", "deleted"])
def test_figures_of_earlier_weights_are_not_shown(copy: Path, quick: None, weights: str | None) -> None:
    schema.write_json(copy / "summary.json", {"models": {"train": {"test_accuracy": 0.97}}})
    assert "of the test images right, two-stage" in parse(page_of(copy)).with_id("result").text
    if weights is None:
        shutil.rmtree(copy / "train")
    else:
        (copy / "train" / "model.safetensors").write_text(weights)
    page = parse(page_of(copy))
    assert "two-stage: its test is not of the weights that are there now: run `twostage evaluate`" in page.text
    assert "Stage 2 has no result yet" in page.text
    assert "of the test images right, two-stage" not in page.text
    assert [row[0] for row in page.table("Test accuracy of the models")[1:]] == [
        "cross-entropy", "balanced cross-entropy (stage 1)"
    ]


def test_a_run_whose_weights_were_taken_away_keeps_its_figures(copy: Path) -> None:
    before = collect(copy).tested
    for weights in copy.glob("*/model.safetensors"):
        weights.unlink()
    found = collect(copy)
    assert [(m.name, m.accuracy) for m in found.tested] == [(m.name, m.accuracy) for m in before] and not found.notes


def test_a_validation_accuracy_of_earlier_weights_is_not_shown(copy: Path, quick: None) -> None:
    shutil.rmtree(copy / "evaluate")
    schema.write_json(copy / "summary.json", {"models": {"train": {"val_accuracy": 0.925}}})
    for value, current in ((0.925, True), (0.875, False)):
        schema.write_json(copy / "train" / "done.json", {"inputs": {}, "results": {"val_accuracy": value}})
        text = parse(page_of(copy)).text
        assert ("92.50 %" in text) == current
        assert ("summary.json is not of the weights that are there now: run `twostage evaluate`" in text) != current


def test_no_second_stage_is_asked_for_where_none_is_wanted(copy: Path, quick: None) -> None:
    change_config("run", "two_stage", False)(copy)
    for stage in ("pretrain", "rank", "mine", "train", "evaluate/pretrain", "evaluate/train"):
        shutil.rmtree(copy / stage)
    text = parse(page_of(copy)).text
    assert "run again" not in text and "Stage 2 has no result yet" not in text and "have been mined yet" not in text
    change_config("run", "finetune", True)(copy)
    assert "Stage 2 has no result yet" in parse(page_of(copy)).text


def test_a_dataset_that_has_changed_gives_no_thumbnails(copy: Path, quick: None) -> None:
    for stage in ("pretrain", "train", "rank", "mine", "baseline_cross_entropy"):
        schema.write_json(copy / stage / "done.json", {"inputs": {"dataset.samples": "0" * 64}, "results": {}})
    text = parse(page_of(copy)).text
    assert "has changed since the run began (SHA-256 " in text and "No thumbnails" in text


def test_an_image_that_cannot_be_read_is_said_in_its_place(run_dir: Path, tmp_path: Path, quick: None) -> None:
    shutil.copytree(run_dir.parent, tmp_path / "all")
    run, shard = tmp_path / "all" / "run", tmp_path / "all" / "dataset" / "shards" / "000000.tar"
    change_config("data", "dataset", str(tmp_path / "all" / "dataset"))(run)
    shard.write_bytes(bytes(shard.stat().st_size))
    page = parse(page_of(run))
    assert not page.with_id("gallery").all("img")
    assert page.with_id("gallery").text.count("cannot be shown: not a JPEG, PNG or WebP image") > 20
    shard.unlink()
    assert "No such file" in parse(page_of(run)).with_id("gallery").text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {dataset: nowhere}\n")
    (tmp_path / "summary.json").write_text('{"models": {"train": {"test_accuracy": 0.5}}}')
    page = parse(page_of(tmp_path))
    assert page.table("Test accuracy of the models")[1][:2] == ["two-stage", "50.00 %"]
    assert page.text.count("yet") >= 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rum", r"no run folder .*rum; did you mean 'run'\?"),
        ("dataset", r"holds no run \(no config\.yaml\): `twostage run"),
    ],
)
def test_what_is_no_run_is_refused(run_dir: Path, argument: str, message: str) -> None:
    with pytest.raises(schema.InputError, match=message):
        report([str(run_dir.parent / argument)])


def test_out_that_is_a_folder_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(schema.InputError, match=r"is a folder: name a file in it"):
        report([str(run_dir), "--out", str(tmp_path)])


def test_out_in_a_folder_that_is_not_there_is_refused(run_dir: Path, tmp_path: Path) -> None:
    for runs in ([run_dir], [run_dir, tmp_path]):
        with pytest.raises(schema.InputError, match=r"page\.html: no folder .*nowhere: make it first$"):
            report([*map(str, runs), "--out", str(tmp_path / "nowhere" / "page.html")])


# ------------------------------------------------------------------------------------------------------------ colours


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio, 1..21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast_of_text_and_curves(mode: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", (REPORT / "report.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", light if mode == "light" else dark))
    for text in ("text", "muted", "blue", "green", "red"):
        for ground in ("page", "card", "soft"):
            ratio = contrast(colours[text], colours[ground])
            assert ratio >= 4.5, f"{text} on {ground}: {ratio:.2f}"
    for name, pair in COLOURS.items():
        drawn = pair[0 if mode == "light" else 1]
        if name in colours:
            assert colours[name] == drawn, f"{name} differs between the page and its pictures"
        if name != "rule":
            assert contrast(drawn, colours["card"]) >= 3, name
