"""Reads pickles that hold numpy arrays and plain containers, and refuses all others before anything of theirs runs.

A pickle is a program: by naming classes and functions it can run anything. Here it may name only what rebuilds an
array of numbers, and each of these names is taken to mean something below, not what numpy means by it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt


class RefusedPickleError(Exception):
    """The pickle names something that is neither an array nor a plain container, or it is damaged."""


def read_plain_pickle(data: bytes) -> Any:
    """The object of a pickle of any protocol; strings of Python 2 become bytes.

    Raises:
        RefusedPickleError: it names anything else than arrays of numbers, or cannot be read.
    """
    try:
        _check_promises(data)
        return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except RefusedPickleError:
        raise
    except Exception as error:      # a damaged stream can raise nearly anything
        raise RefusedPickleError(f"damaged: {type(error).__name__}: {error}") from error


def _check_promises(data: bytes) -> None:
    """Refuses what the unpickler would make room for before it looks: five bytes can ask for 64 GB of memo."""
    for opcode, argument, _ in pickletools.genops(data):    # itself refuses lengths beyond the end
        if opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) < len(data):
            raise RefusedPickleError(f"damaged: memo entry {argument} in {len(data)} bytes")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Called for everything that a pickle names."""
        module = module.replace("numpy.core", "numpy._core")        # its name before numpy 2
        try:
            return _ALLOWED[module, name]
        except KeyError:
            text = f"it names {module}.{name}; only numpy arrays and plain containers are read"
            raise RefusedPickleError(text) from None


class _ArrayName:
    """Stands for numpy.ndarray, where a pickle names it."""


class _PlainDtype:
    """A data type of numbers; its byte order follows as its state."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = np.dtype(_text(code))
        if self.dtype.kind not in "biuf":
            raise RefusedPickleError(f"an array of {self.dtype}; only arrays of numbers are read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(">" if _text(state[1]) == ">" else "<")


class _PlainArray(np.ndarray[Any, Any]):
    """An array that is filled by the state that follows it in the pickle."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.dtype, is_fortran, data))


def _empty_array(kind: type, *_: Any) -> _PlainArray:
    if kind is not _ArrayName:
        raise RefusedPickleError(f"an array of the kind {kind!r}")
    return _PlainArray((0,), np.int8)


def _buffer_array(buffer: bytes, dtype: _PlainDtype, shape: tuple[int, ...], order: str) -> npt.NDArray[Any]:
    """An array as protocol 5 has it."""
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 writes them for protocols below 3."""
    if encoding not in ("latin1", b"latin1"):
        raise RefusedPickleError(f"a text in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Empty bytes, in the same protocols."""
    return b""


_ALLOWED: Final[dict[tuple[str, str], type | Callable[..., Any]]] = {
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.numeric", "_frombuffer"): _buffer_array,
    ("numpy", "ndarray"): _ArrayName,
    ("numpy", "dtype"): _PlainDtype,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
}
