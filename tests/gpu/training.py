"""Part: images per second of a training step, with synthetic tensors and with real shards, against the plain recipe."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.gpu.loading import augment, batch_size, best_options, one_pass, open_streamed
from tests.gpu.part import Part, Row
from tests.gpu.plain_loader import PillowImages
from twostage.config import OptimizerConfig
from twostage.data.dataset import Dataset
from twostage.losses import consistency, cross_entropy
from twostage.models import build_model
from twostage.runtime.optimizers import make_optimizer
from twostage.stage2.pi_model import PiModel

CLASSES = 14
NAMES = {2: "Π step", 1: "supervised step"}
RATE, REAL = "synthetic_images_per_second", "real_images_per_second"
Batch = tuple[tuple[Tensor, ...], Tensor]
Step = Callable[[Batch], None]


def main() -> None:
    """Measures the supervised and the Π-model's step; a sample that is seen twice counts once."""
    part = Part("training")
    dataset = Dataset.open(part.dataset)
    options = best_options(part)

    def ours(num_views: int, *, compiled: str = "", half: bool = True) -> Row:
        name = f"{NAMES[num_views]}, bf16, channels-last{f', torch.compile, {compiled}' if compiled else ''}"
        name += "" if half else ", float32 batches"
        return part.do(
            f"{name}: synthetic, real shards, synthetic",
            lambda: with_shards(part, dataset, options, num_views, compiled=compiled, half=half),
        )

    for num_views in (2,) if part.toy else (2, 1):
        name = NAMES[num_views]
        eager = ours(num_views)
        passes = ", two forward passes" if num_views == 2 else ""
        plain = part.do(f"plain recipe: {name}, TF32, NCHW{passes}", lambda n=num_views: plain_recipe(part, n))
        part.do(f"{name}: ours over the plain recipe", lambda a=eager, b=plain: {"ratio": round(a[RATE] / b[RATE], 3)})
        compiled = ours(num_views, compiled="default")
        loaded = part.do(
            f"plain recipe: {name}, Pillow in torch's DataLoader", lambda n=num_views: plain_loaded(part, dataset, n)
        )
        part.do(
            f"{name} from real shards: ours over the plain recipe with Pillow",
            lambda a=eager, b=compiled, c=loaded: {
                "ratio": round(a[REAL] / c[REAL], 3),
                "ratio_compiled": round(b[REAL] / c[REAL], 3),
            },
        )
    ours(2, compiled="reduce-overhead")         # CUDA graphs
    if part.toy:
        return
    ours(2, half=False)
    torch.backends.cudnn.benchmark = True
    part.do(
        "Π step, bf16, channels-last, cudnn.benchmark: synthetic, real shards, synthetic",
        lambda: with_shards(part, dataset, options, 2, compiled="", half=True),
    )


def new_step(part: Part, num_views: int, compiled: str) -> Step:
    """The project's own: its network, losses, optimizer; bf16 autocast, channels-last, one forward pass."""
    torch.manual_seed(0)
    name = "mlp" if part.toy else "resnet50"
    model = build_model(name, num_classes=CLASSES, in_channels=3, image_size=augment(part).size)
    model = model.to(part.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, OptimizerConfig())
    method = PiModel(reduction="sum")
    how: dict[str, Any] = {"backend": "eager"} if part.toy else {"mode": compiled}
    network: Any = torch.compile(model, **how) if compiled else model

    def step(batch: Batch) -> None:
        images, index = batch
        labels = index % CLASSES
        if num_views == 2:
            labels[1::2] = -1
        with torch.autocast(part.device.type, dtype=torch.bfloat16):
            if num_views == 2:
                supervised, agreement = method.losses(network, images, index, labels)
                loss = supervised + 100 * agreement
            else:
                loss = cross_entropy(network(images[0]), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def synthetic(part: Part, num_views: int, dtype: torch.dtype, layout: torch.memory_format) -> Iterator[Batch]:
    """One batch of noise over and over."""
    size, side = batch_size(part), augment(part).size
    shape = (size, 3, side, side)
    images = tuple(
        torch.randn(shape, device=part.device).to(dtype).contiguous(memory_format=layout) for _ in range(num_views)
    )
    return itertools.repeat((images, torch.arange(size, device=part.device)))


def rate(part: Part, step: Step, batches: Iterator[Batch], seconds: float) -> float:
    """Samples per second, after some steps that are not measured."""
    for batch in itertools.islice(batches, 2 if part.toy else 6):
        step(batch)
    count = 2 if part.toy else 10

    def run() -> int:
        number = 0
        for batch in itertools.islice(batches, count):
            step(batch)
            number += len(batch[1])
        return number

    return part.rate(run, seconds=0.1 if part.toy else seconds)


def with_shards(
    part: Part, dataset: Dataset, options: dict[str, Any], num_views: int, *, compiled: str, half: bool
) -> Row:
    """The step on synthetic tensors, on the loader's batches, and again on synthetic tensors."""
    half = half and part.on_gpu
    part.fresh()
    started = time.monotonic()
    step = new_step(part, num_views, compiled)
    dtype = torch.float16 if half else torch.float32
    made_up = synthetic(part, num_views, dtype, torch.channels_last)
    step(next(made_up))
    part.synchronize()
    first = time.monotonic() - started
    before = rate(part, step, made_up, 2)
    loader = open_streamed(part, dataset, half=half, **options)
    passes = (one_pass(loader, len(dataset), batch_size(part), num_views=num_views, epoch=e) for e in itertools.count())
    real = rate(part, step, itertools.chain.from_iterable(passes), 5)
    waited = loader.data_wait
    loader.close()
    after = rate(part, step, made_up, 2)
    return {
        RATE: round((before + after) / 2, 1),
        "synthetic_before_and_after": [round(before, 1), round(after, 1)],
        REAL: round(real, 1),
        "real_over_synthetic": round(real / ((before + after) / 2), 3),
        "data_wait": round(waited, 4),
        "peak_gib": part.peak_gib(),
        "first_step_seconds": round(first, 1),
        "loader": options,
    }


def plain_recipe(part: Part, num_views: int) -> Row:
    """As the compared code bases train: float32 with TF32, NCHW, a forward pass for each input, torch's Adam."""
    with plain_settings(part):
        made_up = synthetic(part, num_views, torch.float32, torch.contiguous_format)
        found = rate(part, plain_step(part, num_views), made_up, 4)
        return {RATE: round(found, 1), "peak_gib": part.peak_gib()}


def plain_loaded(part: Part, dataset: Dataset, num_views: int) -> Row:
    """The same, fed as they are: torch's DataLoader, a worker for each core, Pillow, each view decoded by itself."""
    workers = 1 if part.toy else os.cpu_count() or 1
    loader: Any = torch.utils.data.DataLoader(
        PillowImages(dataset, augment(part), num_views), batch_size(part), shuffle=True, drop_last=True,
        num_workers=workers, persistent_workers=True, pin_memory=part.on_gpu, multiprocessing_context="spawn",
    )

    def batches() -> Iterator[Batch]:
        for views, index in itertools.chain.from_iterable(loader for _ in itertools.count()):
            yield tuple(v.to(part.device, non_blocking=True) for v in views), index.to(part.device)

    with plain_settings(part):
        endless = batches()
        found = rate(part, plain_step(part, num_views), endless, 5)
        endless.close()
        return {REAL: round(found, 1), "workers": workers, "peak_gib": part.peak_gib()}


@contextmanager
def plain_settings(part: Part) -> Iterator[None]:
    """TF32 and cudnn.benchmark, for this measurement alone."""
    part.fresh()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = False


def plain_step(part: Part, num_views: int) -> Step:
    """Network, losses and optimizer of the plain recipe."""
    name = "mlp" if part.toy else "resnet50"
    network: nn.Module = build_model(name, num_classes=CLASSES, in_channels=3, image_size=augment(part).size)
    network = network.to(part.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4)

    def step(batch: Batch) -> None:
        images, index = batch
        labels = index % CLASSES
        if num_views == 2:
            labels[1::2] = -1
            logits = [network(view) for view in images]
            loss = cross_entropy(logits[0], labels) + 100 * consistency(*logits, reduction="sum")
        else:
            loss = cross_entropy(network(images[0]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
