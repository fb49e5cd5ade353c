"""PNG, WebP and JPEG files whose chunks a program has put together in an unusual way: DALI decodes what is accepted."""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from chunks import TURNED, UPRIGHT, Chunk, assembled, changed, interlaced_png, parsed
from dali_apart import CRASHED, shapes_apart
from judging import judged, reason
from photos import KINDS, encoded, pixels, rgb, with_orientation
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import CheckedImage, Encoding, Limits, check_image

LIMITS = Limits(max_bytes=100_000_000, max_pixels=2_000_000, max_ratio=math.inf, decode=True)
HEADER = dataclasses.replace(LIMITS, decode=False)
ANEW = Encoding(image_format="png", short_side=None, quality=90)
PNG = parsed(KINDS["png"](1))[1]
WEBP = parsed(encoded(rgb(1, height=1), "WEBP", save_all=True, append_images=[rgb(9, height=1)]))[1]
PALETTE = parsed(KINDS["palette.png"](1))[1]
PIXELS = zlib.decompress(PNG[1][1])
LONG = b"x\0" + bytes(8_000_000)


def rgba(number: int) -> Image.Image:
    return Image.fromarray(pixels(number, channels=4))


def png(*chunks: Chunk) -> bytes:
    return assembled("png", chunks)


def with_pixels(data: bytes) -> bytes:
    """The small PNG with another IDAT chunk."""
    return png(PNG[0], (b"IDAT", data), PNG[2])


def shape(image: CheckedImage) -> tuple[int, int, int]:
    return image.height, image.width, 3


def animation(**options: object) -> bytes:
    return encoded(rgb(1), "PNG", save_all=True, append_images=[rgb(1001), rgb(1002)], **options)


UNUSUAL = {
    "interlaced.png": interlaced_png(5),
    "exif.png": encoded(rgb(5), "PNG", exif=with_orientation(6)),
    "palette animation.png": encoded(rgb(5).quantize(9), "PNG", save_all=True, append_images=[rgb(6).quantize(9)]),
    "default.png": animation(default_image=True),
    "exif.webp": encoded(rgb(5), "WEBP", exif=with_orientation(6)),
    "lossless exif.webp": encoded(rgb(6), "WEBP", lossless=True, exif=with_orientation(6)),
    "rgba exif.webp": encoded(rgba(6), "WEBP", exif=with_orientation(6)),
    "animation.webp": encoded(rgb(1), "WEBP", save_all=True, append_images=[rgb(9)], exif=with_orientation(6)),
    "exif.jpg": encoded(rgb(1), "JPEG", exif=with_orientation(6), comment=b"x"),
}
GOOD = {
    "icc.png": encoded(rgb(1), "PNG", icc_profile=b"odd" * 43),
    "icc.webp": encoded(rgb(1), "WEBP", icc_profile=b"odd" * 43),
    "xmp.webp": encoded(rgb(1), "WEBP", xmp=b"odd"),
    "exif.png": encoded(rgb(1), "PNG", exif=with_orientation(8)),
    "text.png": png(PNG[0], (b"tEXt", b"Comment\0" + LONG), *PNG[1:]),
    "late text.png": png(*PNG[:2], (b"zTXt", LONG), PNG[2]),
    "private.png": png(PNG[0], (b"prVt", b"odd"), *PNG[1:2], (b"prVt", b"odd"), PNG[2]),
    "split.png": png(PNG[0], (b"IDAT", PNG[1][1][:50]), (b"IDAT", b""), (b"IDAT", PNG[1][1][50:]), PNG[2]),
    "more.png": with_pixels(zlib.compress(PIXELS + bytes(99_999))),
    "transparent.png": encoded(rgb(1), "PNG", transparency=(1, 2, 3)),
    "transparent palette.png": encoded(rgb(1).quantize(32), "PNG", transparency=bytes(9)),
    "2 colours.png": encoded(rgb(1).quantize(2), "PNG", bits=1),
    "256 colours.png": encoded(rgb(1, width=99, height=99).quantize(256), "PNG"),
    "suggested.png": png(PNG[0], (b"PLTE", bytes(30)), *PNG[1:]),
    "background.png": png(PNG[0], (b"bKGD", bytes(6)), *PNG[1:]),
    "interlaced.png": interlaced_png(1),
    "interlaced small.png": interlaced_png(1, 3, 1),
    "animation.png": animation(),
    "gray with alpha.png": encoded(rgb(1).convert("LA"), "PNG"),
    "16 bits.png": png(
        (b"IHDR", struct.pack(">IIBBBBB", 24, 16, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(16 * 145))), PNG[2]
    ),
}
BAD: dict[str, tuple[str, str, bytes]] = {          # reason, reason if written anew, file
    "half": ("truncated", "truncated", with_pixels(zlib.compress(PIXELS[: len(PIXELS) // 2]))),
    "interlaced half": ("truncated", "truncated", png(
        (b"IHDR", PNG[0][1][:12] + b"\x01"), (b"IDAT", zlib.compress(bytes(1100))), PNG[2])),
    "no check sum": ("truncated", "truncated", with_pixels(PNG[1][1][:-4])),
    "critical": ("unsupported", "", png(PNG[0], (b"ABCD", b""), *PNG[1:])),
    "reserved": ("unsupported", "", png(PNG[0], (b"abcd", b""), *PNG[1:])),
    "long": ("unsupported", "", png(PNG[0], (b"iCCP", LONG), *PNG[1:])),
    "wide.webp": ("unsupported", "", assembled("webp", [
        (WEBP[0][0], WEBP[0][1][:4] + (1 << 20).to_bytes(3, "little") + WEBP[0][1][7:]), *WEBP[1:]])),
    "wide": ("unsupported", "", encoded(Image.new("L", (1_000_001, 1)), "PNG")),
    "tall": ("unsupported", "", encoded(Image.new("L", (1, 1_000_001)), "PNG")),
    "two headers": ("damaged", "", png(PNG[0], *PNG)),
    "late header": ("damaged", "", png((b"tEXt", b"a\0b"), *PNG)),
    "method": ("damaged", "", png((b"IHDR", PNG[0][1][:10] + b"\x01\0\0"), *PNG[1:])),
    "no palette": ("damaged", "", png(*(chunk for chunk in PALETTE if chunk[0] != b"PLTE"))),
    "two palettes": ("damaged", "", png(PALETTE[0], PALETTE[1], *PALETTE[1:])),
    "odd palette": ("damaged", "", png(PALETTE[0], (b"PLTE", PALETTE[1][1] + b"x"), *PALETTE[2:])),
    "late palette": ("damaged", "", png(PALETTE[0], *PALETTE[2:-1], PALETTE[1], PALETTE[-1])),
    "background": ("damaged", "", png(PNG[0], (b"bKGD", b"odd"), *PNG[1:])),
    "no frames": ("damaged", "", png(PNG[0], (b"acTL", bytes(8)), *PNG[1:])),
}


def test_what_is_accepted_dali_decodes_to_the_size_that_is_said() -> None:
    """Over thousands of files whose chunks were doubled, dropped, moved, inserted, cut or changed."""
    accepted, reasons = judged({name: make(5) for name, make in KINDS.items()} | UNUSUAL, 120, changed, LIMITS)
    for name, image in accepted:
        assert check_image(image.data, HEADER) == image, (name, image.data.hex())
    shapes = shapes_apart([image.data for _, image in accepted])
    wrong = [(name, image.data.hex(), shape(image), found) for (name, image), found
             in zip(accepted, shapes, strict=True) if found != shape(image)]
    assert not wrong, wrong[0]
    assert len(accepted) > 1000 and min(reasons[name] for name in ("truncated", "damaged", "unsupported")) > 30, reasons


def test_good_files_with_unusual_chunks_are_accepted() -> None:
    images = {name: check_image(data, LIMITS) for name, data in GOOD.items()}
    assert images == {name: check_image(data, HEADER) for name, data in GOOD.items()}
    found = dict(zip(GOOD, shapes_apart(list(GOOD.values())), strict=True))
    assert found == {name: shape(image) for name, image in images.items()}


def test_files_that_dali_cannot_decode() -> None:
    kept = {name: reason(data, LIMITS) for name, (_, _, data) in BAD.items()}
    assert kept == {name: bad[0] for name, bad in BAD.items()}
    anew = {name: reason(data, LIMITS, ANEW) for name, (_, _, data) in BAD.items()}
    assert anew == {name: bad[1] for name, bad in BAD.items()}
    found = dict(zip(BAD, shapes_apart([data for _, _, data in BAD.values()]), strict=True))
    assert [name for name, shape in found.items() if not isinstance(shape, str)] == []


def test_an_animation_whose_default_image_is_not_its_first_frame() -> None:
    """DALI decodes a sound one, and crashes where it would only complain of another file."""
    data = animation(default_image=True)
    assert reason(data, LIMITS) == reason(data, HEADER) == "unsupported" and reason(data, LIMITS, ANEW) == ""
    chunks = parsed(data)[1]
    place = [kind for kind, _ in chunks].index(b"fcTL") + 1
    assert shapes_apart([data, png(*chunks[:place], (b"abcd", b""), *chunks[place:])]) == [(16, 24, 3), CRASHED]


def test_webp_with_exif() -> None:
    """A chunk of odd length before the EXIF chunk, which nearly every second lossless file has, stops DALI."""
    images = [encoded(make(number), "WEBP", exif=with_orientation(6), lossless=lossless)
              for number in range(10) for make in (rgb, rgba) for lossless in (False, True)]
    reasons = [reason(data, LIMITS) for data in images]
    assert reasons == [reason(data, HEADER) for data in images]
    assert set(reasons) == {"", "unsupported"} and min(reasons.count(""), reasons.count("unsupported")) > 5
    shapes = shapes_apart(images)
    assert shapes == [(24, 16, 3) if not why else shape for why, shape in zip(reasons, shapes, strict=True)]
    assert all(isinstance(shape, str) for why, shape in zip(reasons, shapes, strict=True) if why)
    assert {shape(check_image(data, LIMITS, ANEW)) for data in images} == {(24, 16, 3)}


def test_webp_whose_exif_begins_as_in_jpeg() -> None:
    header = struct.pack("<I", 8) + b"\x17\0\0\x0f\0\0"
    pixels = parsed(KINDS["webp"](1))[1]
    data = assembled("webp", [(b"VP8X", header), *pixels, (b"EXIF", b"Exif\0\0" + TURNED)])
    assert shapes_apart([data]) == [shape(check_image(data, LIMITS))] == [(16, 24, 3)]
    assert shape(check_image(data, LIMITS, ANEW)) == (24, 16, 3)


@pytest.mark.parametrize("exif", [[TURNED, UPRIGHT], [UPRIGHT, TURNED], [TURNED[:8] + b"\x01" + TURNED[9:]]])
def test_exif_that_makes_dali_crash(exif: list[bytes]) -> None:
    """It may crash on the next image only, or take the pixels of an image for those of another shape."""
    chunks = [(b"eXIf", block) for block in exif]
    for data in (png(PNG[0], *chunks, *PNG[1:]), png(*PNG[:2], *chunks, PNG[2])):
        assert reason(data, LIMITS) == reason(data, HEADER) == "damaged"
        assert shape(check_image(data, LIMITS, ANEW)) in ((16, 24, 3), (24, 16, 3))
    if exif[0] == TURNED:
        assert CRASHED in shapes_apart([png(PNG[0], *chunks, *PNG[1:])] * 2)


def test_exif_after_the_pixels(tmp_path: Path) -> None:
    late = {"png": png(*PNG[:2], (b"eXIf", TURNED), PNG[2])}
    chunks = parsed(animation())[1]
    late["animation"] = png(*chunks[:-1], (b"eXIf", TURNED), chunks[-1])
    for data in late.values():
        assert {shape(check_image(data, limits)) for limits in (LIMITS, HEADER)} == {(24, 16, 3)}
        with Image.open(io.BytesIO(check_image(data, LIMITS, ANEW).data)) as image:
            assert np.array_equal(np.asarray(image), np.rot90(pixels(1), -1))
    assert shapes_apart(list(late.values())) == [(24, 16, 3)] * 2
    for number in range(6):
        path = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(*parsed(encoded(rgb(number), "PNG"))[1][:-1], (b"eXIf", TURNED), PNG[2]))
    out = str(tmp_path / "dataset")
    for check in ("full", "header"):
        source = ["build", str(tmp_path / "photos"), f"{out}-{check}", "--format", "folder", "--workers", "1"]
        assert main([*source, "--check", check]) == 0
        assert main(["verify", f"{out}-{check}"]) == main(["verify", f"{out}-{check}", "--quick"]) == 0
