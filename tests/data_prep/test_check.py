"""What is accepted can be decoded by DALI, to the size that is said; and the reasons of what is not."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from judging import judged, reason
from nvidia.dali import fn, pipeline_def
from photos import BROKEN, KINDS, encoded, pixels, png_bomb, rgb, with_orientation
from PIL import Image

from data_prep.check import CheckedImage, Encoding, Limits, RejectionError, check_image
from data_prep.exif import exif_orientation
from data_prep.png import png_fault
from data_prep.structure import is_cut, jpeg_start

LIMITS = Limits(max_bytes=100_000, max_pixels=1_000_000, decode=True)
HEADER = Limits(max_bytes=100_000, max_pixels=1_000_000, decode=False)
BATCH = 32


class Decoder:
    """DALI's decoder on the CPU, as the loader uses it."""

    def shapes(self, images: Sequence[bytes]) -> list[tuple[int, ...] | str]:
        """Shapes, or DALI's complaint where it cannot decode."""
        found: list[tuple[int, ...] | str] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            try:
                found += self._decode(batch)
            except RuntimeError:
                found += [self._decode_one(image) for image in batch]
        return found

    def _decode_one(self, image: bytes) -> tuple[int, ...] | str:
        try:
            return self._decode([image])[0]
        except RuntimeError as error:
            return str(error)

    def _decode(self, images: Sequence[bytes]) -> list[tuple[int, ...]]:
        return [image.shape for image in self.decoded(images)]

    def decoded(self, images: Sequence[bytes]) -> list[npt.NDArray[np.uint8]]:
        """(height, width, 3) each."""
        arrays = [np.frombuffer(image, np.uint8) for image in images]

        @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
        def pipeline() -> object:
            return fn.decoders.image(fn.external_source(source=lambda: arrays, batch=True))
        pipe = pipeline()
        pipe.build()
        (output,) = pipe.run()
        return [np.array(output.at(i)) for i in range(len(images))]


@pytest.fixture(scope="module")
def dali() -> Decoder:
    return Decoder()


@pytest.mark.parametrize("name", KINDS)
def test_good_images_of_every_kind(name: str, dali: Decoder) -> None:
    data = KINDS[name](3)
    image = check_image(data, LIMITS)
    assert image == CheckedImage(data, {"jpg": "jpeg"}.get(name[-3:], name[-4:].strip(".")), 24, 16)
    assert check_image(data, HEADER) == image
    assert dali.shapes([data]) == [(image.height, image.width, 3)]


@pytest.mark.parametrize("name", BROKEN)
def test_the_reason_of_broken_images(name: str) -> None:
    expected, data = BROKEN[name]
    assert reason(data, LIMITS) == expected
    if name not in ("damaged.png", "cut.png", "cut.webp"):          # of these, the header is sound
        assert reason(data, HEADER) == expected


def test_a_bomb_is_rejected_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = KINDS["jpg"](1).replace(struct.pack(">HH", 16, 24), b"\xff\x00\xff\x00")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for bomb in (png_bomb(), png_bomb(2_000_000_000, 2), jpeg):
        assert reason(bomb, LIMITS) == reason(bomb, HEADER) == "too_many_pixels"
        with pytest.raises(RejectionError):
            check_image(bomb, LIMITS, Encoding(image_format="jpeg", short_side=8, quality=90))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_orientations(image_format: str, dali: Decoder) -> None:
    """As they are stored by cameras and by others: either byte order, as SHORT, LONG or BYTE, and nonsense."""
    images = []
    for order in "<>":
        for kind in "HIB":
            for orientation in range(11):
                exif = with_orientation(orientation, order, kind)
                images.append(encoded(rgb(orientation), image_format, exif=exif))
    images.append(encoded(rgb(1), image_format, exif=b"Exif\0\0MM\0*\0\0\0\x08"))
    checked = [check_image(image, LIMITS) for image in images]
    assert [check_image(image, HEADER) for image in images] == checked
    assert dali.shapes(images) == [(image.height, image.width, 3) for image in checked]
    assert {(image.width, image.height) for image in checked} == {(24, 16), (16, 24)}


def entry(order: str, tag: int, kind: int, count: int, value: int) -> bytes:
    short = kind == 3
    return struct.pack(order + ("HHIHH" if short else "HHII"), tag, kind, count, value, *([0] if short else []))


def test_damaged_exif_turns_as_dali_does(dali: Decoder) -> None:
    rng = random.Random(3)
    plain = encoded(rgb(1), "JPEG")
    images = []
    for _ in range(1500):
        order, magic = rng.choice((("<", b"II*\0"), (">", b"MM\0*")))
        tags = rng.sample((0x10E, 0x10F, 0x110, 0x11A, 0x128, 0x131, 0x13E, 0x13F, 0x211, 0x214, 0x8298, 0x8769), 2)
        entries = [entry(order, tag, rng.choice((2, 5)), rng.choice((1, 4, 9, 90)), rng.choice((8, 40, 90, 5000)))
                   for tag in tags[: rng.randrange(3)]]
        turn = entry(order, 0x112, rng.choice((1, 3, 4)), 1, rng.choice((3, 6, 8)))
        entries.insert(rng.randrange(len(entries) + 1), turn)
        head = b"Exif\0\0" + magic + struct.pack(order + "I", 8) + struct.pack(order + "H", len(entries))
        exif = bytearray(head + b"".join(entries) + bytes(rng.randrange(30)))
        for _ in range(rng.randrange(3)):
            exif[rng.randrange(6, len(exif))] = rng.choice((0, 1, 255, rng.randrange(256)))
        del exif[rng.choice((len(exif), len(exif), rng.randrange(8, len(exif)))) :]
        images.append(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
    checked = [check_image(image, LIMITS) for image in images]
    assert [check_image(image, HEADER) for image in images] == checked
    wrong = [image.data[4:80].hex() for image, shape in zip(checked, dali.shapes(images), strict=True)
             if shape != (image.height, image.width, 3)]
    assert not wrong
    assert 200 < sum(image.height == 24 for image in checked) < 1200


def test_orientation_in_other_places_than_exif_turns_nothing(dali: Decoder) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    data = encoded(rgb(1), "JPEG", xmp=xmp)
    assert b"Orientation" in data
    image = check_image(data, LIMITS)
    assert (image.width, image.height) == (24, 16) and dali.shapes([data]) == [(16, 24, 3)]


def test_exif_that_is_cut_or_lies_is_no_orientation() -> None:
    exif = with_orientation(6)
    assert exif_orientation(exif) == exif_orientation(exif[6:]) == 6
    assert all(exif_orientation(exif[:length]) in (1, 6) for length in range(len(exif)))
    assert exif_orientation(exif[:25]) == 1 and exif_orientation(None) == exif_orientation("text") == 1
    assert exif_orientation(exif[:10] + b"\xff\xff\xff\xff" + exif[14:]) == 1


def damage(data: bytes, rng: random.Random) -> bytes:
    """One or a few of the things that happen to files."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.choice((rng.randrange(len(changed)), rng.randrange(min(200, len(changed)))))   # headers more often
        length = rng.choice((1, 1, 2, 4, rng.randrange(1, 100)))
        match rng.randrange(8):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.choice((0, 255, 0xD8, 0xD9, 0xC0, 0xDA, 0xE1, rng.randrange(256)))
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = rng.randbytes(length)
            case 4:
                changed[place : place + length] = bytes(length)
            case 5:
                changed[place : place + length] = rng.randbytes(length)
            case 6:
                del changed[max(place, 20) :]
            case 7:
                other = rng.randrange(len(changed))
                changed[place:place] = changed[other : other + length]
        if len(changed) < 2:
            return bytes(changed)
    return bytes(changed)


def test_what_is_accepted_dali_decodes_to_the_size_that_is_said(dali: Decoder) -> None:
    """Over thousands of damaged files. DALI may well decode some that are rejected; that is on the safe side."""
    exif = encoded(rgb(1), "JPEG", exif=with_orientation(6), comment=b"x" * 50)
    restarts = encoded(rgb(2), "JPEG", restart_marker_blocks=1)
    kinds = {name: make(5) for name, make in KINDS.items()} | {"exif.jpg": exif, "restarts.jpg": restarts}
    accepted, reasons = judged(kinds, 250, damage, LIMITS)
    shapes = dali.shapes([image.data for _, image in accepted])
    wrong = [(name, image.data.hex(), (image.width, image.height), shape) for (name, image), shape
             in zip(accepted, shapes, strict=True) if shape != (image.height, image.width, 3)]
    assert not wrong, wrong[0]
    assert len(accepted) > 500 and min(reasons[name] for name in ("", "truncated", "damaged", "format")) > 50, reasons


def test_the_header_alone_gives_the_same_answer_where_the_image_is_sound() -> None:
    rng = random.Random(2)
    agreed = 0
    for name, make in KINDS.items():
        data = make(8)
        for _ in range(60):
            damaged = damage(data, rng)
            if not reason(damaged, LIMITS):
                assert check_image(damaged, HEADER) == check_image(damaged, LIMITS), name
                agreed += 1
    assert agreed > 100


def test_jpeg_structure() -> None:
    data = encoded(rgb(1), "JPEG", exif=with_orientation(3))
    start = jpeg_start(data)
    assert (start.fault, start.width, start.height) == ("", 24, 16)
    assert data[start.scan : start.scan + 2] == b"\xff\xda" and exif_orientation(start.exif) == 3
    app = b"\xff\xe5\x00\x04ab"
    cases = {
        data[:2] + b"\xff\xff\xff" + data[2:]: "",                          # fill bytes
        data[:2] + app + data[2:]: "",
        data[:2] + b"\0" + data[2:]: "no marker at byte 2",
        data[:2] + b"\xff\xd0" + data[2:]: "marker 0xffd0 at byte 2, before the first scan",
        data[:2] + b"\xff\xe5\x00\x01" + data[2:]: "a segment of length 1 at byte 2",
        data[: start.scan]: "ends before the first scan",
    }
    for changed, fault in cases.items():
        assert jpeg_start(changed).fault == fault
    segment = b"\xff\xe1" + struct.pack(">H", len(with_orientation(6)) + 2) + with_orientation(6)
    assert jpeg_start(data[:2] + segment + data[2:]).fault == "more than one EXIF segment"
    assert all(jpeg_start(data[:length]).fault for length in range(start.scan))


def test_png_structure() -> None:
    data = encoded(rgb(1), "PNG")
    assert png_fault(data) == ""
    assert png_fault(data[:-1]) == "ends before the IEND chunk" == png_fault(data[:40])
    assert png_fault(data[:20] + b"\x01" + data[21:]) == "the check sum of the chunk at byte 8 is wrong"
    text = struct.pack(">I", 2) + b"tEXt" + b"ab" + b"bad!"                 # not needed: its check sum does not matter
    assert png_fault(data[:-12] + text + data[-12:]) == ""
    animated = KINDS["animated.png"](1)
    place = animated.rindex(b"fdAT") + 20
    assert png_fault(animated) == ""
    changed = animated[:place] + bytes([animated[place] ^ 1]) + animated[place + 1 :]
    assert png_fault(changed).startswith("the check sum")


def test_webp_that_promises_exif(dali: Decoder) -> None:
    data = KINDS["rgba.webp"](1)
    assert data[12:16] == b"VP8X" and check_image(data, LIMITS).width == 24
    promising = data[:20] + bytes([data[20] | 8]) + data[21:]
    assert reason(promising, LIMITS) == "damaged" and isinstance(dali.shapes([promising])[0], str)
    assert reason(data[:20] + bytes([data[20] & ~0x10]) + data[21:], LIMITS) == "damaged"
    kept = encoded(Image.fromarray(pixels(1, channels=4)), "WEBP", exif=with_orientation(8))
    assert kept[20] & 8 and (check_image(kept, LIMITS).width, dali.shapes([kept])) == (16, [(24, 16, 3)])


def test_files_that_end_too_early() -> None:
    for name in ("jpg", "png", "webp", "exif"):
        data = KINDS[name](1) if name in KINDS else encoded(rgb(1), "JPEG", exif=with_orientation(2))
        assert not is_cut(data)
        assert is_cut(data[: len(data) // 3])
    assert not is_cut(b"text") and not is_cut(b"")


def test_rejected_as_too_large_without_looking() -> None:
    assert reason(b"\xff\xd8\xff" + bytes(100_000), LIMITS) == "too_large"


@pytest.mark.parametrize("quality", [1, 100])
@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_written_anew_dali_decodes_them_all(image_format: str, quality: int, dali: Decoder) -> None:
    encoding = Encoding(image_format=image_format, short_side=7, quality=quality)
    images = [check_image(make(4), LIMITS, encoding) for make in KINDS.values()]
    assert dali.shapes([image.data for image in images]) == [(image.height, image.width, 3) for image in images]
    assert {min(image.width, image.height) for image in images} == {7}
    assert [check_image(image.data, LIMITS) for image in images] == images
    assert {image.image_format for image in images} == {image_format}


def test_sixteen_bits_become_eight_as_dali_decodes_them(dali: Decoder) -> None:
    data = encoded(Image.fromarray(np.arange(65_536, dtype=np.uint16).reshape(256, 256)), "PNG")
    image = check_image(data, LIMITS, Encoding(image_format="png", short_side=None, quality=90))
    with Image.open(io.BytesIO(image.data)) as decoded:
        assert np.array_equal(np.asarray(decoded), dali.decoded([data])[0][..., 0])
        assert np.array_equal(np.asarray(decoded).ravel()[::257], np.arange(256))
