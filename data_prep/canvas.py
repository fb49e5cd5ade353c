"""Made-up photographs: as many as wanted, with the spectra of real ones, so that they compress and decode alike.

Some large canvases are painted first: leaves of all sizes lie over each other, since it is edges and occlusions that
give natural images their 1/f amplitude spectra (Lee, Mumford, Huang, "Occlusion models for natural images", 2001);
each leaf has a 1/f texture of its own strength, in colours that vary less than brightness does. An image is cut out
of two canvases, joined along an irregular line, mirrored or not: that is cheap beside its JPEG encoding. The
constants were fitted to 800 photographs of clothes, centre crops at 128 and 256 pixels: bytes per pixel at quality 90
(mean and spread), deviation, correlation of the colour channels.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

NUM_CANVASES: Final = 16
MARGIN: Final = 512                 # pixels by which a canvas exceeds an image: room to cut; 8 images if that is less
MAX_BYTES: Final = 2**28            # of all canvases together; large images are cut out of fewer
STREAM: Final = 0x73796E7468        # keeps these random numbers apart from others with the same seed

COLOUR: Final = (62, 48, 28)        # deviation between leaves: light, red-blue, green; in steps of 8 bits
TEXTURE: Final = (24, 5, 4)         # the same, within a leaf
SLOPES: Final = (0.9, 1.3, 1.3)     # the textures' amplitudes fall as frequency to the power of minus this
NOISE: Final = 1.5                  # of the sensor
BLUR: Final = 0.4                   # of the lens, pixels
BUSY: Final = (0.2, 2.7)            # strength of a canvas's textures
CONTRAST: Final = (0.5, 1.25)
LEAVES: Final = (3, 36)             # so many have their middle in a part as large as an image
RADII: Final = (0.03, 0.7)          # of leaves, as a share of an image's shorter side
LIGHT_TO_RGB: Final = np.array([[1, 1, 1], [0.6, 0, -0.6], [0.25, -0.55, 0.3]], dtype=np.float32)

Floats = npt.NDArray[np.float32]


class Painter:
    """Makes the images of one size. The same arguments and number give the same bytes, with one version of Pillow."""

    def __init__(self, width: int, height: int, quality: int, rng_seed: int) -> None:
        """Paints the canvases: a second or two, and some 30 to 350 MB.

        Args:
            width: pixels.
            height: pixels.
            quality: of the JPEG encoding, 1..100; colours are stored at half the resolution (4:2:0).
            rng_seed: not negative, below 2**64.
        """
        self.width, self.height, self.quality, self.rng_seed = width, height, quality, rng_seed
        side = max(width, height) + min(MARGIN, 8 * min(width, height))
        rng = np.random.default_rng([rng_seed, STREAM])
        textures = np.stack([one_over_f(side, slope, rng) for slope in SLOPES], axis=-1)
        count = int(np.clip(MAX_BYTES // (4 * side * side), 2, NUM_CANVASES))
        even = (np.arange(count) + 0.5) / count     # spread evenly, so that all seeds give about the same sizes
        kinds = np.stack([rng.permutation(even) for _ in range(3)], axis=1).astype(np.float32)
        size = min(width, height)
        self.canvases = [paint_canvas(textures, size, kind, rng) for kind in kinds]
        self.mask = Image.fromarray(one_over_f(side, 2.2, rng) > 0.3)   # mode "1": joins faster than blending does

    def jpeg(self, number: int, comment: bytes = b"") -> bytes:
        """The JPEG file of image `number`, 0 or more; with a comment in its header."""
        buffer = io.BytesIO()
        image = self.image(number)
        image.save(buffer, "JPEG", quality=self.quality, subsampling="4:2:0", comment=comment)
        return buffer.getvalue()

    def image(self, number: int) -> Image.Image:
        """Image `number`, RGB."""
        # the raw stream is the part of numpy's generators that is promised never to change
        key = np.array([self.rng_seed ^ STREAM, number], dtype=np.uint64)
        draws = [int(value) for value in np.random.Philox(key=key).random_raw(6)]
        image = self._cut(self.canvases[draws[0] % len(self.canvases)], draws[1])
        other = self._cut(self.canvases[draws[2] % len(self.canvases)], draws[3])
        image.paste(other, (0, 0), self._cut(self.mask, draws[4]))
        if draws[5] & 1:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if draws[5] & 2:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return image

    def _cut(self, canvas: Image.Image, place: int) -> Image.Image:
        left = (place & 0xFFFFFFFF) % (canvas.width - self.width + 1)
        upper = (place >> 32) % (canvas.height - self.height + 1)
        return canvas.crop((left, upper, left + self.width, upper + self.height))


def one_over_f(side: int, slope: float, rng: np.random.Generator) -> Floats:
    """(side, side) noise whose amplitude falls as frequency to the power of -`slope`; mean 0, deviation 1; periodic."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]).astype(np.float32)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)) * frequency**-slope
    noise: Floats = np.fft.irfft2(spectrum, s=(side, side)).astype(np.float32)
    noise /= noise.std()
    return noise


def paint_canvas(textures: Floats, size: int, kind: Floats, rng: np.random.Generator) -> Image.Image:
    """A canvas as large as its textures.

    Args:
        textures: (side, side, 3): light, red-blue, green.
        size: pixels; of the images that will be cut out.
        kind: (3,), each 0..1: where within BUSY, CONTRAST and LEAVES the canvas lies.
        rng: for everything else.
    """
    side = len(textures)
    busy, contrast, crowded = (float(value) for value in kind)
    per_image = LEAVES[0] * (LEAVES[1] / LEAVES[0]) ** crowded
    leaf = draw_leaves(side, size, round(per_image * (side / size) ** 2), rng)
    count = int(leaf.max()) + 1
    colour = (rng.standard_normal((count, 3)) * COLOUR).astype(np.float32)
    strength = rng.choice([0.1, 0.3, 1.0], (count, 1)) * BUSY[0] * (BUSY[1] / BUSY[0]) ** busy
    texture = np.roll(textures, rng.integers(0, side, 2), axis=(0, 1)) * np.array(TEXTURE, dtype=np.float32)
    light = colour[leaf] + texture * strength.astype(np.float32)[leaf]
    light *= np.float32(CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast)
    light[..., 0] += rng.standard_normal((side, side), dtype=np.float32) * NOISE + np.float32(rng.uniform(97, 147))
    pixels = np.clip(light @ LIGHT_TO_RGB, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR))


def draw_leaves(side: int, size: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """(side, side) which leaf is on top, 1 to `count`, or 0 for none; large leaves lie below small ones."""
    smallest, largest = (share * size for share in RADII)
    radii = np.sort(largest * (smallest / largest) ** rng.uniform(0, 1, count))[::-1]
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    round_square = np.sign(circle) * np.abs(circle) ** 0.4
    outlines = np.where(rng.uniform(size=(count, 1, 1)) < 1 / 3, round_square, circle)
    outlines *= np.stack([radii, radii * rng.uniform(0.3, 1, count)], axis=1)[:, None]
    tilt = rng.uniform(0, np.pi, count)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]).transpose(2, 0, 1)
    outlines = outlines @ turn + rng.uniform(0, side, (count, 1, 2))
    leaves = Image.new("I", (side, side))
    pen = ImageDraw.Draw(leaves)
    for number, outline in enumerate(outlines.reshape(count, -1).tolist(), start=1):
        pen.polygon(outline, fill=number)
    return np.asarray(leaves)
