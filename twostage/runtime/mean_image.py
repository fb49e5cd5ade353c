"""The mean image of the training view, which the paper subtracts pixel by pixel (section 4.1)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twostage.config import Config
from twostage.data import plan
from twostage.data.augment import NUM_CHANNELS, Pixels, resized_shape
from twostage.data.loader import StreamedImages
from twostage.data.schema import SPLITS, read_mean, write_aside
from twostage.data.views import Views
from twostage.runtime.world import World, all_reduce_sum

BATCH_SIZE = 256


def mean_image(config: Config, views: Views, world: World) -> Pixels:
    """The mean over the training view of what the network sees of an image in evaluation: resized, the centre cut out.

    Taken from the dataset where `data_prep build` computed it and it is that of this view; else computed by all ranks
    together in one pass over the view. Kept as `mean_image.safetensors` in the run folder. Sums of pixels are whole
    numbers, so the result is the same bits whatever the number of ranks.

    Returns:
        float32 (channels, size, size) on the scale 0..255, on the host.

    Raises:
        InputError: an image cannot be read or decoded.
    """
    augment, path = config.augment, config.run.dir / "mean_image.safetensors"
    made_from = json.dumps(
        {
            "samples": views.dataset.digest,
            "view": hashlib.sha256(views.train.tobytes()).hexdigest(),
            "augment": [augment.channels, augment.resize, augment.size],
        }
    )
    found = _kept(path, made_from)
    num_found = all_reduce_sum(torch.tensor(found is not None, dtype=torch.int64, device=world.device), world).item()
    if found is not None and num_found == world.size:       # one decision for all: computing takes all ranks
        return found
    mean = from_dataset(config, views)
    if mean is None:
        mean = _computed(config, views, world)
    if world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, save({"mean_image": mean}, {"made_from": made_from}))
    return mean


def from_dataset(config: Config, views: Views) -> Pixels | None:
    """The centre of the mean image that the dataset has, if it is the mean of what this run trains on.

    That is: of the whole training split, in colour, with every image resized to the same shorter side. The pixels were
    added up before the images were encoded for the dataset, and what DALI decodes differs by the losses of that: by
    half a level of 256 for one image, which goes in both directions and hardly shows in the mean.

    Raises:
        InputError: mean.parquet is damaged.
    """
    dataset, augment = views.dataset, config.augment
    mean = read_mean(dataset.path, dataset.marker)
    if mean is None or augment.channels != "rgb":
        return None
    margin = mean.shape[1] - augment.size
    if margin < 0 or margin % 2 or not np.array_equal(np.sort(views.train), dataset.split_indices(SPLITS[0])):
        return None
    table = pq.read_table(dataset.path / "samples.parquet", columns=["height", "width"])
    height, width = resized_shape(table["height"].to_numpy(), table["width"].to_numpy(), augment.resize)
    if (np.minimum(height, width)[views.train] != mean.shape[1]).any():
        return None
    inner = slice(margin // 2, margin // 2 + augment.size)
    return mean[:, inner, inner].astype(np.float32)


def _kept(path: Path, made_from: str) -> Pixels | None:
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("made_from") == made_from:
                image: Pixels = file.get_tensor("mean_image")
                return image
    except (OSError, SafetensorError):
        pass                                        # not there, or damaged: made anew
    return None


def _computed(config: Config, views: Views, world: World) -> Pixels:
    channels, size = NUM_CHANNELS[config.augment.channels], config.augment.size
    # With 0 and 1/255, what the loader gives are the pixels themselves, 0..255.
    bare = dataclasses.replace(config.augment, mean=[0.0] * channels, std=[1 / 255] * channels)
    batches = plan.fixed_batches(views.train, BATCH_SIZE)
    own = [batches[number] for number in plan.rank_range(len(batches), world.rank, world.size)]
    total = torch.zeros((channels, size, size), dtype=torch.float64, device=world.device)
    loader = StreamedImages(views.dataset, bare, config.loader, world.device)
    try:
        for (images,), _ in loader.batches(own, training=False):
            total += images.sum(dim=0, dtype=torch.float64)
    finally:
        loader.close()
    mean = all_reduce_sum(total, world).cpu().numpy() / len(views.train)
    return mean.astype(np.float32)
