"""One pass over a view: each sample once, or the classes balanced; shuffled among all shards or within windows of them.

Numpy only. Random bits come straight from the counter-based generator Philox: its raw output is fixed for all versions
of numpy, while the methods of `numpy.random.Generator` may change between versions, and with them the order of a
resumed run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twostage.data.schema import NO_LABEL, InputError

Indices = npt.NDArray[np.int64]
Shards = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]

MEMBERS, EXTRA, SHARDS, SLOTS = range(4)                    # parts of a stream that makes passes
WORD_BITS: Final = 64


@dataclass(frozen=True)
class Stream:
    """Random words for one purpose and one pass or epoch; `part` tells apart what is drawn within it."""

    purpose: int
    rng_seed: int
    number: int

    def words(self, part: int, size: int) -> Words:
        """(size,) random 64-bit words."""
        key = np.array([self.rng_seed % 2**WORD_BITS, self.purpose], dtype=np.uint64)
        # The lowest word of the counter runs within the call; the others keep calls apart by 2**64 blocks.
        counter = np.array([0, part, self.number, 0], dtype=np.uint64)
        words: Words = np.random.Philox(key=key, counter=counter).random_raw(size)
        return words


@dataclass(frozen=True)
class Source:
    """A view that passes are made over; its fields are arguments of `plan.epoch_batches`."""

    view: Indices
    labels: Indices | None
    shard: Shards | None
    window_shards: int
    purpose: int
    rng_seed: int

    def check(self, batch_size: int) -> None:
        """Refuses, by InputError, an empty view and sizes that make no sense."""
        check_batch_size(batch_size)
        if not len(self.view):
            raise InputError("the view holds no sample: the split or its labels are empty")
        if self.window_shards < 0:
            raise InputError(f"loader.window_shards: {self.window_shards} is negative; 0 shuffles among all shards")
        assert self.shard is not None or not self.window_shards

    @property
    def length(self) -> int:
        """Slots that one pass needs."""
        if self.labels is None:
            return len(self.view)
        counts = np.bincount(self.labels[self.view] - NO_LABEL)
        present = counts[1:][counts[1:] > 0]
        return int(counts[0] + present.size * present.max(initial=0))

    def one_pass(self, number: int, size: int | None = None) -> Indices:
        """(size,) sample indices of pass `number`, shuffled; `size` is `length` or more."""
        stream = Stream(self.purpose, self.rng_seed, number)
        windows = self._windows(stream)
        if self.labels is None:
            order = self.view[shuffled(stream.words(SLOTS, len(self.view)), windows)]
            return order if size is None else np.resize(order, size)
        members = self._balanced_members(stream, size or self.length)
        windows = None if windows is None else windows[members]
        return self.view[members[shuffled(stream.words(SLOTS, len(members)), windows)]]

    def endless(self, start: int, stop: int) -> Indices:
        """Slots start..stop-1 of the sequence of all passes, without making the passes before."""
        length = self.length
        first = start // length
        passes = [self.one_pass(number) for number in range(first, -(-stop // length))]
        return np.concatenate(passes)[start - first * length : stop - first * length]

    def _balanced_members(self, stream: Stream, size: int) -> Indices:
        """(size,) positions in the view, grouped by class: smaller classes more than once."""
        assert self.labels is not None
        group = self.labels[self.view] - NO_LABEL           # group 0 has no label
        counts = np.bincount(group)
        present = np.flatnonzero(counts[1:]) + 1
        slots = np.zeros_like(counts)
        if present.size:
            slots[0] = counts[0]
            each, left = divmod(size - counts[0], present.size)
            slots[present] = each
            slots[present[shuffled(stream.words(EXTRA, present.size))[:left]]] += 1
        else:
            slots[0] = size
        times, once_more = np.divmod(slots, np.maximum(counts, 1))
        # The order within a group is random, so its first members are a fair draw of those that occur once more.
        repeats = np.repeat(
            np.stack([times + 1, times], axis=1).ravel(), np.stack([once_more, counts - once_more], axis=1).ravel()
        )
        return np.repeat(shuffled(stream.words(MEMBERS, len(group)), group), repeats)

    def _windows(self, stream: Stream) -> Indices | None:
        """(n,) which window each position of the view belongs to, None where there is one window only."""
        if self.shard is None or not self.window_shards:
            return None
        shard = self.shard[self.view]
        present = np.flatnonzero(np.bincount(shard))
        if present.size <= self.window_shards:
            return None
        turn = np.zeros(present[-1] + 1, dtype=np.int64)
        turn[present[shuffled(stream.words(SHARDS, present.size))]] = np.arange(present.size)
        return (turn // self.window_shards)[shard]


def shuffled(words: Words, group: Indices | None = None) -> Indices:
    """(n,) positions 0..n-1: groups in increasing order, shuffled inside each group; one random word a position.

    One sort of whole words: group in the upper bits, position in the lower ones, random bits between. That is several
    times faster than sorting positions by keys, and the result does not hang on how a sort treats equal keys. With
    2**20 positions and 2**10 groups 34 random bits are left; where two are equal the positions keep their order.
    """
    position_bits = max(len(words) - 1, 0).bit_length()
    group_bits = 0 if group is None else int(group.max(initial=0)).bit_length()
    assert position_bits + group_bits < WORD_BITS
    keys = words >> np.uint64(group_bits + position_bits)
    keys <<= np.uint64(position_bits)
    keys |= np.arange(len(words), dtype=np.uint64)
    if group is not None and group_bits:
        keys |= group.astype(np.uint64) << np.uint64(WORD_BITS - group_bits)
    keys = in_order(keys)
    keys &= np.uint64(2**position_bits - 1)
    return keys.view(np.int64)


def in_order(keys: Words) -> Words:
    """(n,) the keys in increasing order; may be in place.

    numpy's own sort of 64-bit numbers is a vectorised quicksort, which on AMD's Zen 4 takes five times as long as with
    AVX2 (51 ms for a million instead of 11; the instruction that compresses vectors is slow there). To sort by the
    upper 16 bits first, which numpy does by counting, and then what is nearly in order, takes 20 ms on both.
    """
    if len(keys) > 2**21:           # counting loses once a 16-bit bucket no longer fits the fastest cache
        keys.sort()
        return keys
    keys = keys[np.argsort((keys >> np.uint64(WORD_BITS - 16)).astype(np.uint16), kind="stable")]
    keys.sort(kind="stable")
    return keys


def number_in_group(sizes: Indices) -> Indices:
    """(sum of sizes,) 0, 1, 2, ... within each of consecutive groups."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def check_batch_size(batch_size: int) -> None:
    """Refuses a size below 1 by InputError."""
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is less than 1")
