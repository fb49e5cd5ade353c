"""Part: images per second of a ranking, which is a forward pass over everything: synthetic, and from real shards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from tests.gpu.loading import augment, batch_size, best_options, open_streamed
from tests.gpu.part import Part, Row
from twostage.data import plan
from twostage.data.dataset import Dataset
from twostage.models import build_model
from twostage.runtime.evaluation import probabilities


def main() -> None:
    """Measures eager and compiled."""
    part = Part("ranking")
    dataset = Dataset.open(part.dataset)
    options = best_options(part)
    size = 2 * batch_size(part)
    what = "forward, bf16, channels-last: synthetic, real"
    part.do(f"{what}; eager", lambda: forward(part, dataset, options, None, size))
    part.do("evaluation.probabilities, as `rank` calls it: real", lambda: as_rank(part, dataset, options, size))
    for mode in ("default",) if part.toy else ("default", "reduce-overhead"):
        part.do(f"{what}; torch.compile, {mode}", lambda m=mode: forward(part, dataset, options, m, size))


def network(part: Part) -> torch.nn.Module:
    torch.manual_seed(0)
    name = "mlp" if part.toy else "resnet50"
    model = build_model(name, num_classes=14, in_channels=3, image_size=augment(part).size)
    return model.to(part.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def forward(part: Part, dataset: Dataset, options: dict[str, Any], mode: str | None, size: int) -> Row:
    """Probabilities of batches; nothing is written."""
    part.fresh()
    model: Any = network(part)
    if mode is not None:
        model = torch.compile(model, backend="eager") if part.toy else torch.compile(model, mode=mode)
    side, half = augment(part).size, part.on_gpu
    made_up = torch.randn(size, 3, side, side, device=part.device).to(memory_format=torch.channels_last)
    made_up = made_up.half() if half else made_up

    def scored(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(part.device.type, dtype=torch.bfloat16):
            return model(images).float().softmax(dim=1)  # type: ignore[no-any-return]

    def synthetic() -> int:
        count = 1 if part.toy else 10
        for images in itertools.repeat(made_up, count):
            scored(images)
        return count * size

    loader = open_streamed(part, dataset, half=half, **options)
    batches = [batch for batch in plan.fixed_batches(np.arange(len(dataset)), size) if len(batch) == size]

    def real() -> int:
        for (images,), _ in loader.batches(batches, training=False):
            scored(images)
        return len(batches) * size

    seconds = 0.1 if part.toy else 3.0
    row = {"synthetic_images_per_second": round(part.rate(synthetic, seconds=seconds))}
    row["real_images_per_second"] = round(part.rate(real, seconds=seconds))
    loader.close()
    return {**row, "batch": size, "peak_gib": part.peak_gib()}


def as_rank(part: Part, dataset: Dataset, options: dict[str, Any], size: int) -> Row:
    """Through the function that the verb `rank` uses."""
    accelerator = Accelerator(mixed_precision="bf16", cpu=not part.on_gpu)
    loader, model = open_streamed(part, dataset, half=part.on_gpu, **options), network(part)
    batches = plan.fixed_batches(np.arange(len(dataset)), size)

    def real() -> int:
        return sum(len(probs.cpu()) for _, probs in probabilities(model, loader, batches, accelerator))

    row = {"real_images_per_second": round(part.rate(real, seconds=0.1 if part.toy else 3.0))}
    loader.close()
    return row


if __name__ == "__main__":
    main()
