"""Part: the loader gives on a GPU what it gives on a CPU, hands out memory that stays, names damage, leaks nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.data.images import encoded, noise, smooth, write_images
from tests.gpu.loading import augment, batch_size, one_pass, open_streamed
from tests.gpu.part import Part, Row
from twostage.config import AugmentConfig
from twostage.data import pipeline, plan
from twostage.data.dataset import Dataset
from twostage.data.loader import StreamedImages, open_loader
from twostage.data.schema import InputError
from twostage.machine_config import LoaderConfig

CPU = torch.device("cpu")
SHARES = (0.0, 0.65, 1.0)


def main() -> None:
    """Runs all checks."""
    part = Part("correctness")
    photos = Dataset.open(part.dataset)
    lossless = write_images(part.work / "lossless", [encoded(noise(n, 40 + n % 9, 36 + n % 7)) for n in range(64)])
    part.do("batches lie on the device, channels-last on a GPU", lambda: layout(part, photos))
    for share in SHARES:
        part.do(f"mixed decode against the CPU's, hw_decoder_load {share}", lambda s=share: decode(part, photos, s))
    part.do("the same without fancy_upsampling (only noted)", lambda: plain(part, photos))
    part.do("CPU decode, GPU augments: equals the CPU pipeline", lambda: hybrid(part, photos))
    part.do("lossless images of mixed sizes, cropped, shifted, flipped: as on the CPU", lambda: exact(part, lossless))
    part.do("EXIF orientations 1 to 8: as on the CPU", lambda: orientations(part))
    for share in SHARES:
        part.do(f"two passes, the same bits; hw_decoder_load {share}", lambda s=share: repeated(part, photos, s))
        part.do(f"two views equal two passes; hw_decoder_load {share}", lambda s=share: two_views(part, photos, s))
        part.do(f"cache equals streaming; hw_decoder_load {share}", lambda s=share: cached(part, photos, s))
    part.do("float16 batches are the float32 ones, rounded", lambda: half(part, photos))
    part.do("mean image: cache equals streaming", lambda: mean_image(part, lossless))
    part.do("memory is not reused while the GPU still reads it", lambda: late_use(part, photos))
    part.do("the same without the copy into torch's memory (only noted)", lambda: without_copy(part, photos))
    part.do("batches stay what they were", lambda: kept(part, photos))
    for kind in ("not an image", "truncated", "empty"):
        part.do(f"a damaged image in a batch: {kind}", lambda k=kind: damaged(part, k))
    part.do("memory, threads and files over many passes", lambda: flat(part, photos))


def apart(a: torch.Tensor, b: torch.Tensor) -> Row:
    """How far two tensors are from each other."""
    difference = (a.float().cpu() - b.float().cpu()).abs()
    return {"max_abs": round(difference.max().item(), 6), "mean_abs": round(difference.mean().item(), 6)}


def exactly(a: list[torch.Tensor], b: list[torch.Tensor]) -> Row:
    """`apart` over all, and whether all bits are the same."""
    rows = [apart(x, y) for x, y in zip(a, b, strict=True)]
    same = all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))
    return {
        "same_bits": same,
        "max_abs": max(row["max_abs"] for row in rows),
        "mean_abs": round(float(np.mean([row["mean_abs"] for row in rows])), 6),
    }


def layout(part: Part, dataset: Dataset) -> Row:
    loader = open_streamed(part, dataset)
    ((images,), index), *_ = one_pass(loader, 64, batch_size(part), steps=1)
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    right = images.device == index.device == part.device and images.dtype == torch.float32
    loader.close()
    return {"ok": right and (channels_last or not part.on_gpu), "kind": loader.kind, "channels_last": channels_last}


def pixels(dataset: Dataset, device: torch.device, **options: Any) -> torch.Tensor:
    """The first samples, decoded: uint8 on the host."""
    settings = LoaderConfig(cache="never", decode_threads=4, **options)
    loader = StreamedImages(dataset, AugmentConfig(resize=None), settings, device)
    decoded = torch.cat([images.cpu() for _, images in loader.decoded(np.arange(min(512, len(dataset))))])
    loader.close()
    return decoded


def decode(part: Part, dataset: Dataset, share: float) -> Row:
    """Levels of 255: other rounding is within a few."""
    found = far_apart(pixels(dataset, part.device, hw_decoder_load=share), pixels(dataset, CPU))
    return {**found, "ok": found["max_abs"] <= 4 and found["mean_abs"] < 0.05}


def plain(part: Part, dataset: Dataset) -> Row:
    """What another upsampling of the colours makes of the pixels."""
    return far_apart(pixels(dataset, part.device, fancy_upsampling=False), pixels(dataset, CPU))


def far_apart(ours: torch.Tensor, theirs: torch.Tensor) -> Row:
    """`apart`, and how many of the values are far."""
    far = ((ours.int() - theirs.int()).abs() > 8).float().mean().item()
    return {**apart(ours, theirs), "share_over_8_levels": round(far, 6)}


def batches(dataset: Dataset, device: torch.device, settings: AugmentConfig, **options: Any) -> list[torch.Tensor]:
    """All views of a training pass with two views over the first samples, on the host."""
    loader = StreamedImages(dataset, settings, LoaderConfig(cache="never", **options), device)
    views = [view.cpu() for images, _ in one_pass(loader, min(64, len(dataset)), 16, num_views=2) for view in images]
    loader.close()
    return views


def hybrid(part: Part, dataset: Dataset) -> Row:
    settings = augment(part)
    found = exactly(batches(dataset, part.device, settings, decoder="cpu"), batches(dataset, CPU, settings))
    return {**found, "ok": found["max_abs"] < 1e-5}


def exact(part: Part, dataset: Dataset) -> Row:
    settings = AugmentConfig(resize=None, size=38, shift=3)
    found = exactly(batches(dataset, part.device, settings), batches(dataset, CPU, settings))
    resized = AugmentConfig(resize=24, size=24)
    scaled = exactly(batches(dataset, part.device, resized), batches(dataset, CPU, resized))
    # a level is 1/255/0.225 = 0.0174 after normalisation
    return {**found, "max_abs_resized": scaled["max_abs"], "ok": found["max_abs"] < 1e-5 and scaled["max_abs"] < 0.04}


def orientations(part: Part) -> Row:
    images = [encoded(smooth(1, 48, 80), "jpeg", number, quality=95) for number in range(1, 9)]
    dataset = write_images(part.work / "orientations", images)
    settings = AugmentConfig(resize=None, size=48)
    seen = []
    for device in (part.device, CPU):
        loader = StreamedImages(dataset, settings, LoaderConfig(cache="never"), device)
        ((views, _),) = loader.batches([np.arange(8)], training=False)
        seen.append(views[0].cpu())
        loader.close()
    found = apart(*seen)
    return {**found, "ok": found["max_abs"] < 0.08}         # 4 levels, after normalisation


def repeated(part: Part, dataset: Dataset, share: float) -> Row:
    settings = augment(part)
    found = exactly(*(batches(dataset, part.device, settings, hw_decoder_load=share) for _ in range(2)))
    return {**found, "ok": found["mean_abs"] < 0.01}


def two_views(part: Part, dataset: Dataset, share: float) -> Row:
    loader = open_streamed(part, dataset, hw_decoder_load=share)
    plan_ = plan.epoch_batches(np.arange(min(64, len(dataset))), batch_size=16, rng_seed=0, epoch=0)

    def draws(step: int) -> Any:
        return plan.draws(16, rng_seed=0, epoch=0, step=step, num_views=2)

    both = [views for views, _ in loader.batches(plan_, training=True, num_views=2, draws=draws)]
    found = []
    for view in (0, 1):
        alone = loader.batches(plan_, training=True, draws=lambda step, v=view: draws(step)[v : v + 1])
        found.append(exactly([views[view] for views in both], [images for (images,), _ in alone]))
    loader.close()
    return {**found[0], "ok": max(row["mean_abs"] for row in found) < 0.01}


def cached(part: Part, dataset: Dataset, share: float) -> Row:
    settings, size = augment(part), batch_size(part)
    views = []
    for cache in ("always", "never"):
        options: Any = {"cache": cache, "hw_decoder_load": share}
        loader: Any = open_loader(dataset, settings, LoaderConfig(**options), part.device)
        passed = one_pass(loader, min(64, len(dataset)), min(size, 64))
        views.append([images for (images,), _ in passed])
        loader.close()
    found = exactly(*views)
    return {**found, "ok": found["mean_abs"] < 0.01}


def half(part: Part, dataset: Dataset) -> Row:
    views = []
    for wanted in (False, True):
        loader = open_streamed(part, dataset, half=wanted, hw_decoder_load=0.0)
        views.append([images.half() for (images,), _ in one_pass(loader, min(64, len(dataset)), 16)])
        loader.close()
    found = exactly(*views)
    return {**found, "ok": found["max_abs"] < 0.004}


def mean_image(part: Part, dataset: Dataset) -> Row:
    size = 20
    mean = np.random.default_rng(0).uniform(0, 255, (3, size, size)).astype(np.float32)
    settings = AugmentConfig(resize=None, size=size, mean="image")
    views = []
    for device in (part.device, CPU):
        loader = open_loader(dataset, settings, LoaderConfig(cache="never"), device, mean_image=mean)
        views.append([v for images, _ in one_pass(loader, 64, 16, num_views=2) for v in images])  # type: ignore[arg-type]
        loader.close()
    found = exactly(*views)
    return {**found, "ok": found["max_abs"] < 1e-4}


def late_use(part: Part, dataset: Dataset) -> Row:
    """Sums that the GPU gets to long after the host let go of the batch, against sums taken at once."""
    size, busy = batch_size(part), torch.ones(64 if part.toy else 8192, 64 if part.toy else 8192, device=part.device)
    sums: list[list[torch.Tensor]] = []
    for late in (True, False):
        loader = open_streamed(part, dataset, hw_decoder_load=0.0)
        taken = []
        for images, _ in one_pass(loader, min(len(dataset), 16 * size), size, num_views=2):
            if late:
                for _ in range(4):
                    busy = (busy @ busy).clamp_(0, 1)           # some tens of milliseconds in which the host runs ahead
            taken.append(torch.stack([view.double().sum(dim=(1, 2, 3)) for view in images]))
            if not late:
                part.synchronize()
        del images
        sums.append(taken)
        part.synchronize()
        loader.close()
    found = exactly(*sums)
    return {**found, "ok": found["max_abs"] < 1}


def without_copy(part: Part, dataset: Dataset) -> Row:
    """Whether DALI's own memory would be safe: where it is, again and again, the copy could go."""
    pipeline.COPY_ON_GPU = False
    try:
        return late_use(part, dataset) | {"ok": True}
    finally:
        pipeline.COPY_ON_GPU = True


def kept(part: Part, dataset: Dataset) -> Row:
    loader = open_streamed(part, dataset)
    size = batch_size(part)
    held, copies = [], []
    for epoch in range(3):
        for images, index in one_pass(loader, min(len(dataset), 8 * size), size, num_views=2, epoch=epoch):
            held += [*images, index]
            copies += [tensor.clone() for tensor in (*images, index)]
    loader.close()
    part.synchronize()
    wrong = sum(not torch.equal(a, b) for a, b in zip(held, copies, strict=True))
    return {"ok": wrong == 0, "tensors": len(held), "changed": wrong}


def damaged(part: Part, kind: str) -> Row:
    """Names the image, goes on with others; a decoder that makes something of a truncated image is only noted."""
    images = [encoded(smooth(number, 64, 64), "jpeg") for number in range(12)]
    whole = encoded(noise(0, 64, 64), "jpeg")
    images[7] = {"not an image": b"<html>404</html>" * 50, "truncated": whole[: len(whole) // 2], "empty": b""}[kind]
    dataset = write_images(part.work / f"damaged {kind}", images, sizes={7: (64, 64)})
    loader = StreamedImages(dataset, AugmentConfig(resize=None, size=32), LoaderConfig(cache="never"), part.device)
    said = ""
    try:
        for _ in loader.batches([np.array([0, 1, 7]), np.array([3, 4, 5])], training=False):
            part.synchronize()
    except InputError as error:
        said = str(error)
    named = re.search(r"sample 7 \('photos/7'; .*000001\.tar.*cannot be decoded", said) is not None
    after = [index.tolist() for _, index in loader.batches([np.arange(3), np.arange(8, 12)], training=False)]
    part.synchronize()
    loader.close()
    ok = named or (kind == "truncated" and not said)
    ok = ok and after == [[0, 1, 2], [8, 9, 10, 11]]
    return {"ok": ok, "named": named, "message": said.replace(str(part.work), "")}


def resources(part: Part) -> dict[str, float]:
    """Resident MiB, GPU MiB in use by anybody, threads, descriptors."""
    status = Path("/proc/self/status").read_text()
    free, total = torch.cuda.mem_get_info(part.device) if part.on_gpu else (0, 0)
    return {
        "host_mib": int(status.split("VmRSS:")[1].split()[0]) / 1024,
        "gpu_mib": (total - free) / 2**20,
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


def flat(part: Part, dataset: Dataset) -> Row:
    loader = open_streamed(part, dataset)
    size = batch_size(part)

    def passes(number: int) -> None:
        for epoch in range(number):
            for step, _ in enumerate(one_pass(loader, min(len(dataset), 8 * size), size, num_views=2, epoch=epoch)):
                if epoch % 3 == 2 and step == 1:
                    break                                       # a consumer that stops early
        part.synchronize()

    passes(6)
    before = resources(part)
    passes(30)
    after = resources(part)
    loader.close()
    grown = {f"{name}_grown": round(after[name] - before[name], 1) for name in before}
    ok = grown["host_mib_grown"] < 100 and grown["gpu_mib_grown"] < 100 and grown["files_grown"] <= 0
    # Of the threads that read, some may be started only now, where all were never busy at once; a leak would be ten.
    ok = ok and grown["threads_grown"] < LoaderConfig().read_threads
    return {**grown, "ok": ok, "gpu_mib": round(after["gpu_mib"])}


if __name__ == "__main__":
    main()
