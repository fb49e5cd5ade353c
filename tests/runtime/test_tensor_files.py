"""A checkpoint's files are what safetensors itself would write; their digests are those of the bytes on the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twostage.data.schema import InputError
from twostage.runtime import manifest, snapshot

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=8)


def filled(shape: tuple[int, ...], dtype: torch.dtype, number: int) -> Tensor:
    values = np.random.default_rng(number).integers(0, 100, shape)
    return torch.from_numpy(np.asarray(values)).to(dtype)


@given(TENSORS, st.none() | st.dictionaries(st.text(max_size=4), st.integers(), max_size=3))
def test_the_bytes_are_those_of_safetensors(drawn: dict[str, tuple[tuple[int, ...], torch.dtype]], about: Any) -> None:
    tensors = {name: filled(*what, number) for number, (name, what) in enumerate(drawn.items()) if "__" not in name}
    written = snapshot.to_bytes(tensors, about)
    metadata = None if about is None else {"twostage": json.dumps(about)}
    assert written == safetensors.torch.save(tensors, metadata)
    read = safetensors.torch.load(written)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors.items())


def test_views_transposed_and_shared_tensors_are_written_as_they_look() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"whole": base, "again": base, "part": base[1:3, ::2], "turned": base.t(), "zero": torch.tensor(3.5)}
    read = safetensors.torch.load(snapshot.to_bytes(tensors))
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(safetensors.torch.load(snapshot.to_bytes({"x": channels_last}))["x"], channels_last)


@pytest.mark.parametrize("behind", [0, 100, 1 << 30])
def test_size_and_digest_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int) -> None:
    monkeypatch.setattr(manifest, "BLOCK", 64)
    monkeypatch.setattr(manifest, "BEHIND", behind)
    rng = np.random.default_rng(0)
    for number in range(30):
        pieces = [rng.bytes(int(size)) for size in rng.integers(0, 200, int(rng.integers(0, 12)))]
        path = tmp_path / str(number)
        entry = manifest.write_synced(path, iter(pieces))
        written = path.read_bytes()
        assert written == b"".join(pieces)
        assert entry == {"size": len(written), "sha256": hashlib.sha256(written).hexdigest()}
        assert manifest.size_of(iter(pieces)) == len(written)
    assert manifest.write_synced(tmp_path / "plain", b"abc")["sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(snapshot.to_bytes({"x": torch.ones(5)})[:-3])
    with pytest.raises(InputError, match=r"x\.safetensors is not a safetensors file"):
        snapshot.from_file(path)
