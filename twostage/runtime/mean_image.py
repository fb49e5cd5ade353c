"""The mean image of the training view, which the paper subtracts pixel by pixel (section 4.1)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twostage.config import Config
from twostage.data import plan
from twostage.data.augment import NUM_CHANNELS, Pixels
from twostage.data.loader import StreamedImages
from twostage.data.schema import write_aside
from twostage.data.views import Views
from twostage.runtime.world import World, all_reduce_sum

BATCH_SIZE = 256


def mean_image(config: Config, views: Views, world: World) -> Pixels:
    """The mean over the training view of what the network sees of an image in evaluation: resized, the centre cut out.

    Computed by all ranks together in one pass over the view, and kept as `mean_image.safetensors` in the run folder.
    Sums of pixels are whole numbers, so the result is the same bits whatever the number of ranks.

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
    mean = _computed(config, views, world)
    if world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, save({"mean_image": mean}, {"made_from": made_from}))
    return mean


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
