"""A run folder and a small dataset made by hand, without training anything."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from twostage.config import MineConfig
from twostage.data import schema
from twostage.stage1.mine import mine

Indices = npt.NDArray[np.int64]


def coloured_square(label: int, number: int) -> bytes:
    """A PNG that shows its class by its colour."""
    pixels = np.random.default_rng(number).integers(0, 60, (24, 20, 3)).astype(np.uint8)
    pixels[4:-4, 4:-4] += np.array([60 * (label % 3), 60 * (label // 3 % 3), 150], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_dataset(path: Path, images: Sequence[bytes], keys: Sequence[str]) -> None:
    """Writes images (JPEG or PNG files) as a complete dataset of one shard, all of split noisy_train."""
    (path / "shards").mkdir(parents=True)
    columns: dict[str, list[Any]] = {name: [] for name in schema.SAMPLES_SCHEMA.names}
    with tarfile.open(path / "shards" / schema.shard_name(0), "w") as shard:
        for index, (data, key) in enumerate(zip(images, keys, strict=True)):
            kind = "jpeg" if data[:2] == b"\xff\xd8" else "png"
            member = tarfile.TarInfo(schema.member_name(index, kind))
            member.size = len(data)
            offset = shard.offset + 512
            shard.addfile(member, io.BytesIO(data))
            row = (index, key, "noisy_train", 0, offset, len(data), 1, 1, kind, hashlib.sha256(data).digest())
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
    schema.write_table(path / "samples.parquet", pa.table(columns, schema=schema.SAMPLES_SCHEMA))
    digest = schema.file_digest(path / "samples.parquet")
    marker = schema.dataset_marker({"noisy_train": len(images)}, 1, digest, ["made by hand"])
    schema.write_json(path / "dataset.json", marker)


def fake_ranking(clean: Indices, noisy: Indices, num_classes: int) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Predictions and probabilities of a network that is mostly right about the truth."""
    rng = np.random.default_rng(1)
    seen = np.where(rng.random(len(clean)) < 0.9, clean, noisy)
    logits = rng.normal(0, 0.7, (len(clean), num_classes))
    logits[np.arange(len(clean)), seen] += rng.uniform(1, 8, len(clean))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probs.argmax(axis=1), probs.astype(np.float32)


def make_run(run: Path, dataset: Path, names: Sequence[str], clean: Indices, noisy: Indices) -> None:
    """Writes every file of a finished run over a dataset whose samples have these clean and noisy labels."""
    everything, digest = np.arange(len(clean)), schema.file_digest(dataset / "samples.parquet")
    for name, label in (("given", clean), ("noisy", noisy)):
        column = schema.LabelColumn(name=name, index=everything, label=label, class_names=tuple(names), how="by hand")
        schema.write_labels(dataset, column)
    run.mkdir(parents=True)
    data = {"dataset": str(dataset), "labels": "noisy", "clean_labels": "given", "holdout": 0.1}
    config = {"run": {"dir": str(run), "rng_seed": 0}, "data": data, "model": {"name": "resnet14"},
              "mine": {"refine_val": True}}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    schema.write_json(run / "environment.json", {"command": "twostage run --config configs/demo/digits.yaml",
                                                 "python": "3.11", "packages": {"torch": "2.10"}, "gpus": []})
    predicted, probs = fake_ranking(clean, noisy, len(names))
    mined = _rank_and_mine(run, names, clean, noisy, predicted, probs)
    for model, accuracy, steps in (("baseline_cross_entropy", 0.86, 300), ("pretrain", 0.9, 300), ("train", 0.97, 240)):
        _model(run, model, accuracy, steps, names)
    figures = {"rank": {"samples": len(clean), "parts": 2}, "mine": mined}
    for stage in ("pretrain", "train", "rank", "mine", "baseline_cross_entropy"):
        marker = {"inputs": {"dataset.samples": digest}, "results": figures.get(stage, {})}
        schema.write_json(run / stage / "done.json", marker)


def _rank_and_mine(
    run: Path, names: Sequence[str], clean: Indices, noisy: Indices, predicted: Indices, probs: npt.NDArray[np.float32]
) -> dict[str, Any]:
    index, score = np.arange(len(clean)), probs[np.arange(len(clean)), noisy]
    score[noisy == schema.NO_LABEL] = 0
    table = pa.table({
        "index": index, "label": noisy, "predicted": predicted, "score": score,
        "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), len(names)), "held_out": index % 10 == 9,
    })
    (run / "rank").mkdir()
    for part, rows in enumerate((slice(1, None, 2), slice(0, None, 2))):
        take = pa.array(index[rows])
        pq.write_table(table.take(take), run / "rank" / f"part-{part:05d}-of-00002.parquet")
    return mine(run / "rank", run / "mine", class_names=names, config=MineConfig(), clean=clean)[1]


def _model(run: Path, model: str, accuracy: float, steps: int, names: Sequence[str]) -> None:
    rng = np.random.default_rng(len(model))
    (run / model).mkdir()
    lines = []
    for step in range(10, steps + 1, 10):
        line: dict[str, Any] = {"step": step, "epoch": step // 30, "train/loss": 2.3 * np.exp(-step / 80) + 0.1,
                                "train/data_wait": 0.02 + 0.01 * rng.random(), "train/images_per_second": 900.0}
        if model == "train":
            line |= {"train/cross_entropy": np.exp(-step / 60), "train/consistency": 0.1 * np.exp(-step / 90),
                     "train/consistency_weight": min(10.0, step / 10)}
        if step % 30 == 0:
            line |= {"val/accuracy": accuracy - 0.4 * np.exp(-step / 60) + 0.01 * rng.normal(),
                     "train/learning_rate": 2e-3 if step < steps / 2 else 1e-3}
        lines.append(json.dumps(line))
    (run / model / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / model / "model.safetensors").write_bytes(model.encode())
    k = len(names)
    confusion = np.array([rng.multinomial(36, np.where(np.arange(k) == c, accuracy, (1 - accuracy) / (k - 1)))
                          for c in range(k)])
    figures = {
        "accuracy": float(np.trace(confusion) / confusion.sum()), "per_class": (np.diag(confusion) / 36).tolist(),
        "confusion": confusion.tolist(), "num_samples": int(confusion.sum()), "class_names": list(names),
    }
    (run / "evaluate" / model).mkdir(parents=True)
    schema.write_json(run / "evaluate" / model / "test.json", figures)
    inputs = {"weights": schema.file_digest(run / model / "model.safetensors")}
    schema.write_json(run / "evaluate" / model / "done.json", {"inputs": inputs, "results": figures})
