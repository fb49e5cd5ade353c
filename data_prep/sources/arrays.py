"""Images that come as arrays of pixels: they become PNG files, which lose nothing."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of (height, width) gray or (height, width, 3) RGB pixels; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
