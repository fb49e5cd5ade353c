"""Run folders with a real network that nobody trained, and image files: what predict and export are tested on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import save_file

from tests.data.images import encoded, noise, smooth
from twostage.config import AugmentConfig
from twostage.data import schema
from twostage.models import build_model
from twostage.runtime.checkpoint import save_weights

NAMES = ("cat", "dog", "frog", "hat")
AUGMENT = AugmentConfig(resize=20, size=16, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])


def network(
    name: str, augment: AugmentConfig, num_classes: int, rng_seed: int = 0, *, output_norm: bool = False
) -> torch.nn.Module:
    """A network that tells images apart: its outputs are far from equal, its BatchNorm statistics from 0 and 1."""
    torch.manual_seed(rng_seed)
    channels = {"rgb": 3, "gray": 1}[augment.channels]
    model = build_model(name, num_classes=num_classes, in_channels=channels, image_size=augment.size)
    if output_norm:
        model = torch.nn.Sequential(model, torch.nn.BatchNorm1d(num_classes))
    model.train()
    for _ in range(3):
        model(torch.randn(8, channels, augment.size, augment.size))
    with torch.no_grad():
        last = [parameter for parameter in model.parameters() if parameter.ndim == 2][-1]
        last.mul_(6)
    return model.eval()


def write_run(
    path: Path,
    *,
    name: str = "mlp",
    augment: AugmentConfig = AUGMENT,
    class_names: Sequence[str] = NAMES,
    models: Sequence[str] = ("pretrain", "train"),
    dataset: Path = Path("nowhere"),
) -> Path:
    """Writes what predict and export need of a finished run; the models differ in their weights."""
    path.mkdir(parents=True)
    config: dict[str, Any] = {
        "run": {"dir": "elsewhere"}, "data": {"dataset": str(dataset)}, "model": {"name": name, "dropout": 0.5},
        "augment": dataclasses.asdict(augment),
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    for number, model in enumerate(models):
        (path / model).mkdir()
        bounded = model in ("baseline_unhinged", "baseline_sigmoid")
        weights = network(name, augment, len(class_names), number, output_norm=bounded)
        save_weights(path / model / "model.safetensors", weights)
        schema.write_json(path / model / "done.json", {"inputs": {}, "results": {}})
        (path / "evaluate" / model).mkdir(parents=True)
        figures = {
            "accuracy": 0.5 + 0.1 * number, "per_class": [0.5] * (len(class_names) - 1) + [None], "num_samples": 1234,
            "class_names": list(class_names),
        }
        (path / "evaluate" / model / "test.json").write_text(json.dumps(figures))
        inputs = {"weights": schema.file_digest(path / model / "model.safetensors")}
        schema.write_json(path / "evaluate" / model / "done.json", {"inputs": inputs, "results": figures})
    if augment.mean == "image":
        shape = ({"rgb": 3, "gray": 1}[augment.channels], augment.size, augment.size)
        save_file({"mean_image": np.random.default_rng(0).uniform(90, 150, shape).astype(np.float32)},
                  path / "mean_image.safetensors")
    return path


def photos(num: int = 14) -> list[bytes]:
    """Image files of all kinds, sizes and some EXIF orientations; smaller and larger than what is cut out."""
    kinds = ("jpeg", "png", "webp")
    return [
        encoded(smooth(n, 18 + 3 * (n % 7), 40 - 2 * n % 23) if n % 2 else noise(n, 21, 33), kinds[n % 3],
                orientation=1 + n % 8 if n % 4 == 0 else None)
        for n in range(num)
    ]


def write_files(folder: Path, files: Sequence[bytes]) -> list[Path]:
    """Writes files as 000.jpg, ...; the ending says nothing of the kind."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:03d}.jpg" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths
