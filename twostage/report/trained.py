"""A trained network with all that it needs to be used: from a run folder, or from one that `twostage export` wrote."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from torch import nn

from twostage.baselines import has_output_norm
from twostage.config import AugmentConfig, ModelConfig
from twostage.data.augment import NUM_CHANNELS, Pixels, check_augment
from twostage.data.dataset import Dataset
from twostage.data.schema import GIVEN_LABELS, InputError, file_digest, nearest
from twostage.machine_config import LoaderConfig, RuntimeConfig
from twostage.models import build_model
from twostage.rows import BEST_FIRST, folder_of, titles
from twostage.runtime.checkpoint import load_weights

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

WHICH_MODEL: Final = (
    "which model of the run, by its folder; default: finetune, else train, else pretrain, else the last that "
    "run.baselines names"
)
"""for the help of --model"""
WEIGHTS: Final = "model.safetensors"
MEAN_IMAGE: Final = "mean_image.safetensors"
EXPORT_FORMAT: Final = "twostage-export"
EXPORT_VERSION: Final = 1
MAX_SIDE: Final = 1 << 14
"""pixels; of what a network can be built for, so that a folder from a stranger cannot ask for all memory"""
MAX_CLASSES: Final = 1 << 20
PRECISIONS: Final[dict[str, Precision]] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Architecture:
    """What a network is built from; see `models.build_model`."""

    name: str
    num_classes: int
    in_channels: int
    image_size: int
    output_norm: bool
    """whether BatchNorm stands behind its outputs"""


@dataclass(frozen=True)
class Trained:
    """A trained network and how its images are prepared."""

    architecture: Architecture
    class_names: tuple[str, ...]
    augment: AugmentConfig
    """as in evaluation, only `channels`, `resize`, `size`, `mean` and `std` matter"""
    loader: LoaderConfig
    precision: Precision
    """of the forward pass, in which its figures were measured"""
    weights: Path
    digest: str
    """SHA-256 of that file"""
    mean_image: Pixels | None
    """(channels, size, size) on the scale 0..255, where `augment.mean` is `image`"""
    name: str
    """of the model: train, finetune, pretrain, baseline_forward, ..."""

    def network(self) -> nn.Module:
        """The network with its weights, on the CPU, in evaluation mode.

        Raises:
            InputError: it cannot be built, or the weights do not fit or are damaged.
        """
        parts = self.architecture
        try:
            model = build_model(
                parts.name, num_classes=parts.num_classes, in_channels=parts.in_channels, image_size=parts.image_size
            )
        except (ValueError, ImportError) as error:
            raise InputError(f"{self.weights.parent}: its network cannot be built: {error}") from error
        if parts.output_norm:
            model = nn.Sequential(model, nn.BatchNorm1d(parts.num_classes))
        load_weights(self.weights, model)
        return model.eval()


def open_trained(path: Path, name: str | None = None, *, own_code: bool = False) -> Trained:
    """Opens a model of a run folder, or an exported folder.

    Args:
        name: which model of a run, by its folder; by default the first of BEST_FIRST that is trained, else the last
            that run.baselines names.
        own_code: whether an exported folder may name a network by import path, which imports that module.

    Raises:
        InputError: there is neither, no such model in it (names the nearest), or something in it is damaged.
    """
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise InputError(f"no folder {path}; {nearest(path.name, siblings)}")
    if (path / "config.yaml").is_file():
        return _of_run(path, name)
    if (path / "config.json").is_file():
        if name is not None:
            raise InputError(f"{path} is an exported folder, which holds one model: leave out --model")
        return _of_export(path, own_code)
    raise InputError(
        f"{path} is no model: it holds neither the config.yaml of a run (`twostage run`) nor the config.json of an "
        "exported folder (`twostage export`)"
    )


def _of_run(path: Path, name: str | None) -> Trained:
    config = _read_config(path / "config.yaml")
    present = [model for model in titles() if (path / model / "done.json").exists()]
    if name is None:
        named = [folder_of(row) for row in reversed(config["baselines"])]      # others of them the last one may need
        found = [model for model in (*BEST_FIRST, *named, *present) if model in present]
        if not found:
            raise InputError(f"{path} holds no trained model yet: run `twostage run` or `twostage pretrain` first")
        name = found[0]
    elif name not in present:
        raise InputError(f"{path} has no trained model {name!r}; {nearest(name, present)}")
    class_names, weights = _class_names(path, name, config["data"]), path / name / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{weights} is gone: delete {weights.parent} and run the same command again")
    return Trained(
        architecture=Architecture(
            name=config["name"],
            num_classes=len(class_names),
            in_channels=NUM_CHANNELS[config["augment"].channels],
            image_size=config["augment"].size,
            output_norm=has_output_norm(name),
        ),
        class_names=class_names,
        augment=config["augment"],
        loader=config["loader"],
        precision=config["precision"],
        weights=weights,
        digest=file_digest(weights),
        mean_image=_mean_image(path / MEAN_IMAGE, config["augment"]),
        name=name,
    )


def _read_config(path: Path) -> dict[str, Any]:
    """What is needed of a run's config.yaml, without the parser of the command line, which takes a second."""
    try:
        tree = yaml.safe_load(path.read_text())
        sections = {key: tree.get(key) or {} for key in ("run", "data", "model", "augment", "loader", "runtime")}
        return {
            "baselines": [str(name) for name in sections["run"].get("baselines") or ()],
            "data": {"labels": GIVEN_LABELS, **sections["data"]},
            "name": str(sections["model"].get("name", ModelConfig.name)),
            "augment": _augment({**dataclasses.asdict(AugmentConfig()), **sections["augment"]}),
            "loader": LoaderConfig(**sections["loader"]),
            "precision": PRECISIONS[sections["runtime"].get("precision", RuntimeConfig.precision)],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"{path} is not the configuration of a run ({type(error).__name__}: {told})") from error


def _augment(values: dict[str, Any]) -> AugmentConfig:
    """How images are prepared, from a file; ValueError, KeyError or TypeError where that makes no sense."""
    mean = values["mean"]
    augment = AugmentConfig(
        channels=values["channels"],
        resize=None if values["resize"] is None else _whole(values["resize"], MAX_SIDE),
        size=_whole(values["size"], MAX_SIDE),
        mean="image" if mean == "image" else [float(value) for value in mean],
        std=[float(value) for value in values["std"]],
    )
    check_augment(augment)
    return augment


def _class_names(path: Path, name: str, data: dict[str, Any]) -> tuple[str, ...]:
    """By class number, from the first file of the run that knows them; else from the dataset."""
    try:
        for test in (path / "evaluate" / name / "test.json", *sorted(path.glob("evaluate/*/test.json"))):
            if test.exists():
                return tuple(str(c) for c in json.loads(test.read_text())["class_names"])
        if (path / "mine" / "classes.parquet").exists():
            rows = pq.read_table(path / "mine" / "classes.parquet", columns=["class", "name"]).sort_by("class")
            return tuple(rows["name"].to_pylist())
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{path}: the names of the classes cannot be read ({error}): evaluate it again") from error
    if "dataset" not in data:
        raise InputError(f"{path} does not say what its classes are called, nor which dataset it is from: evaluate it")
    return Dataset.open(Path(str(data["dataset"]))).labels(str(data["labels"])).class_names


def _mean_image(path: Path, augment: AugmentConfig) -> Pixels | None:
    if augment.mean != "image":
        return None
    shape = (NUM_CHANNELS[augment.channels], augment.size, augment.size)
    try:
        image = load_arrays(path.read_bytes())["mean_image"]
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({error}), and the network needs the mean image") from error
    if image.dtype != np.float32 or image.shape != shape:
        raise InputError(f"{path} holds {image.dtype}{list(image.shape)} instead of float32{list(shape)}")
    return image


def export_config(trained: Trained, made_from: dict[str, Any]) -> dict[str, Any]:
    """The content of an exported folder's config.json."""
    augment = trained.augment
    return {
        "format": EXPORT_FORMAT,
        "version": EXPORT_VERSION,
        "architecture": dataclasses.asdict(trained.architecture),
        "label_names": list(trained.class_names),
        "preprocessing": {
            "channels": augment.channels,
            "resize": augment.resize,           # the shorter side, in pixels; null: as stored
            "interpolation": "bilinear, antialiased",
            "crop": "center",
            "size": augment.size,
            "mean": augment.mean,               # on the scale 0..1, or "image": see mean_image.safetensors
            "std": augment.std,
        },
        "precision": trained.precision,
        "made_from": made_from,
    }


def _of_export(path: Path, own_code: bool) -> Trained:
    config = read_export_config(path)
    try:
        parts, prepared = config["architecture"], config["preprocessing"]
        architecture = Architecture(
            name=str(parts["name"]),
            num_classes=_whole(parts["num_classes"], MAX_CLASSES),
            in_channels=_whole(parts["in_channels"], 3),
            image_size=_whole(parts["image_size"], MAX_SIDE),
            output_norm=parts["output_norm"] is True,
        )
        class_names = tuple(str(name) for name in config["label_names"])
        augment = _augment(prepared)
        if len(class_names) != architecture.num_classes or augment.size != architecture.image_size:
            raise ValueError("architecture, label_names and preprocessing do not belong together")
        if NUM_CHANNELS[augment.channels] != architecture.in_channels:
            raise ValueError(f"channels {augment.channels!r} for a network of {architecture.in_channels}")
        precision = PRECISIONS[config["precision"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / 'config.json'} is damaged ({error!r}): export the model again") from error
    if ":" in architecture.name and not architecture.name.startswith("timm:") and not own_code:
        raise InputError(
            f"{path / 'config.json'} names the network {architecture.name!r}, which would be imported and run; allow "
            "it by --own-code if you trust where the folder comes from, or predict from the run folder"
        )
    return Trained(
        architecture=architecture,
        class_names=class_names,
        augment=augment,
        loader=LoaderConfig(decode_threads=max(1, min(8, os.cpu_count() or 1))),
        precision=precision,
        weights=path / WEIGHTS,
        digest=file_digest(path / WEIGHTS) if (path / WEIGHTS).is_file() else "",
        mean_image=_mean_image(path / MEAN_IMAGE, augment),
        name=str(config.get("made_from", {}).get("model", "exported")),
    )


def read_export_config(path: Path) -> dict[str, Any]:
    """Reads an exported folder's config.json.

    Raises:
        InputError: it is damaged, of another program or of another version.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
        kind = (config["format"], config["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not of a folder that `twostage export` wrote ({error!r})") from error
    if kind != (EXPORT_FORMAT, EXPORT_VERSION):
        raise InputError(f"{file}: format {kind[0]!r} version {kind[1]!r}, this program reads version {EXPORT_VERSION}")
    return dict(config)


def _whole(value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{value!r} is not a whole number from 1 to {most}")
    return value
