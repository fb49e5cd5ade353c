"""Part: images per second from shards in the page cache to normalised batches, by the loader's options."""

from __future__ import annotations

import os
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from tests.gpu.loading import augment, batch_size, best_options, one_pass, open_streamed
from tests.gpu.part import Part, Row
from twostage.data import pipeline
from twostage.data.dataset import Dataset

SHARES = (0.0, 0.5, 0.65, 0.75, 0.9, 1.0)


def main() -> None:
    """Sweeps who decodes, the hardware decoder's share and the threads; then, at the best, what else there is."""
    part = Part("decoding")
    dataset = Dataset.open(part.dataset)
    cores = os.cpu_count() or 2
    threads = [2] if part.toy else sorted({2, 4, 8, cores})
    part.do("warm up: the shards into the page cache", lambda: measured(part, dataset, {"decode_threads": threads[-1]}))
    sweep: list[dict[str, Any]] = [{"decoder": "cpu", "decode_threads": number} for number in threads]
    for share in SHARES:
        sweep += [{"decoder": "auto", "hw_decoder_load": share, "decode_threads": number} for number in threads]
    # the likeliest first, in case that time runs out
    sweep.sort(key=lambda options: abs(options["decode_threads"] - 8))
    for options in sweep[:4] if part.toy else sweep:
        part.do(words(options), lambda o=options: {**measured(part, dataset, o), "options": o})

    for share in () if part.toy else SHARES:                # what the interpolation of colours costs
        plain = {"decoder": "auto", "hw_decoder_load": share, "decode_threads": 8, "fancy_upsampling": False}
        part.do(words(plain), lambda o=plain: measured(part, dataset, o))

    best = best_options(part)
    part.do("best, without fancy_upsampling", lambda: measured(part, dataset, {**best, "fancy_upsampling": False}))
    part.do(f"best, DALI's own reader instead of ours: {words(best)}", lambda: own_reader(part, dataset, best))
    part.do("best, again", lambda: measured(part, dataset, best))
    part.do("best, two views from one decode", lambda: measured(part, dataset, best, num_views=2))
    part.do("best, two views, without the copy on the GPU", lambda: without_copy(part, dataset, best))
    part.do("best, two views, float16", lambda: measured(part, dataset, best, num_views=2, half=True))
    for prefetch in () if part.toy else (2, 8):
        part.do(f"best, prefetch {prefetch}", lambda p=prefetch: measured(part, dataset, {**best, "prefetch": p}))
    part.do("best, read_threads 8", lambda: measured(part, dataset, {**best, "read_threads": 8}))


def words(options: dict[str, Any]) -> str:
    """The options as a line."""
    who = "CPU decodes, GPU augments" if options.get("decoder") == "cpu" else "mixed"
    share = f", hw_decoder_load {options['hw_decoder_load']}" if "hw_decoder_load" in options else ""
    plain = ", without fancy_upsampling" if not options.get("fancy_upsampling", True) else ""
    return f"{who}{share}, {options.get('decode_threads', 2)} threads{plain}"


def measured(part: Part, dataset: Dataset, options: dict[str, Any], *, num_views: int = 1, half: bool = False) -> Row:
    """Images decoded per second (not views)."""
    loader = open_streamed(part, dataset, half=half, **options)
    size = batch_size(part)
    samples = len(dataset) if part.toy else min(len(dataset), 24 * size)

    def run() -> int:
        return sum(len(index) for _, index in one_pass(loader, samples, size, num_views=num_views))

    try:
        return {"images_per_second": round(part.rate(run, seconds=0.2 if part.toy else 1.2)), "kind": loader.kind}
    finally:
        loader.close()


def without_copy(part: Part, dataset: Dataset, options: dict[str, Any]) -> Row:
    """What the copy into torch's memory costs."""
    pipeline.COPY_ON_GPU = False
    try:
        return measured(part, dataset, options, num_views=2)
    finally:
        pipeline.COPY_ON_GPU = True


def own_reader(part: Part, dataset: Dataset, options: dict[str, Any]) -> Row:
    """The same work with DALI's reader, its shuffle buffer, and its own random crops and flips."""
    settings, size = augment(part), batch_size(part)
    mixed = part.on_gpu and options.get("decoder") != "cpu"
    share = {"hw_decoder_load": options["hw_decoder_load"]} if mixed and "hw_decoder_load" in options else {}
    scale = {"mean": [255 * m for m in settings.mean], "std": [255 * s for s in settings.std]}  # type: ignore[operator]

    @pipeline_def(
        batch_size=size,
        num_threads=options.get("decode_threads", 2),
        device_id=0 if part.on_gpu else None,
        prefetch_queue_depth=options.get("prefetch", 4),
        exec_dynamic=True,
    )
    def graph() -> Any:
        encoded = fn.readers.webdataset(
            paths=[str(path) for path in dataset.shard_paths],
            index_paths=[str(path.with_suffix(".idx")) for path in dataset.shard_paths],
            ext=["jpg"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=1024,
            name="reader",
        )
        fancy = {"jpeg_fancy_upsampling": True} if mixed else {}
        images = fn.decoders.image(
            encoded, device="mixed" if mixed else "cpu", output_type=types.RGB, **share, **fancy
        )
        if part.on_gpu and not mixed:
            images = images.gpu()
        return fn.crop_mirror_normalize(
            images,
            crop=(settings.size, settings.size),
            crop_pos_x=fn.random.uniform(range=(0, 1)),
            crop_pos_y=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            output_layout="HWC" if part.on_gpu else "CHW",
            **scale,
        )

    pipe = graph()
    pipe.build()
    batches = DALIGenericIterator([pipe], ["images"], auto_reset=False)
    steps = max(1, (len(dataset) if part.toy else min(len(dataset), 24 * size)) // size)

    def run() -> int:
        return sum(len(next(batches)[0]["images"]) for _ in range(steps))

    return {"images_per_second": round(part.rate(run, seconds=0.2 if part.toy else 1.2))}


if __name__ == "__main__":
    main()
