"""The plan: which samples stand in which slot of which global batch, and how each is augmented.

Pure functions of (view, rng_seed, epoch); numpy only. The number of processes enters nowhere but in `rank_slice` and
`rank_range`, so any number of them sees the same global batches, and to start at a position is to slice. Random bits
come straight from the counter-based generator Philox: its raw output is fixed for all versions of numpy, while the
methods of `numpy.random.Generator` may change between versions, and with them the order of a resumed run.
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

ORDER, HOLDOUT, DRAWS, LABELED, UNLABELED = range(1, 6)     # one random stream for each purpose
MEMBERS, EXTRA, SHARDS, SLOTS = range(4)                    # parts of a stream that makes passes
WORD_BITS: Final = 64


def holdout(labels: Indices, view: Indices, share: float, rng_seed: int) -> tuple[Indices, Indices]:
    """Divides a view into a training part and a held-out part, class by class.

    Of a class with n samples, share · n are held out, rounded to the nearest number (halves up). Samples without a
    label stay in training, and so does a class's only sample.

    Args:
        labels: (num_samples,) by sample index, NO_LABEL where there is none.
        view: (n,) sample indices.

    Returns:
        (training part, held-out part), each increasing.

    Raises:
        InputError: the share is not between 0 and 1, or it leaves a class nothing to train on, or it holds out nothing.
    """
    if not 0 < share < 1:
        raise InputError(f"data.holdout: {share} is not a share between 0 and 1 (both excluded)")
    group = labels[view] - NO_LABEL                         # group 0 has no label
    sizes = np.bincount(group, minlength=1)
    counts = sizes.copy()
    counts[0] = 0
    wanted = np.floor(share * counts + 0.5).astype(np.int64)
    wanted[counts == 1] = 0
    whole = np.flatnonzero((wanted >= counts) & (counts > 0))
    if whole.size:
        numbers = ", ".join(str(c - 1) for c in whole[:10])
        raise InputError(
            f"data.holdout: a share of {share} holds out every sample of class {numbers} (class {whole[0] - 1} has "
            f"{counts[whole[0]]}); choose a smaller share"
        )
    if not wanted.any():
        raise InputError(
            f"data.holdout: a share of {share} holds out no sample (the largest class has {counts.max()}); "
            "choose a larger share"
        )
    by_class = _shuffled(_Stream(HOLDOUT, rng_seed, 0).words(MEMBERS, len(view)), group)
    taken = by_class[_number_in_group(sizes) < np.repeat(wanted, sizes)]
    is_held_out = np.zeros(len(view), dtype=np.bool_)
    is_held_out[taken] = True
    return np.sort(view[~is_held_out]), np.sort(view[is_held_out])


def epoch_batches(
    view: Indices,
    *,
    batch_size: int,
    rng_seed: int,
    epoch: int,
    labels: Indices | None = None,
    shard: Shards | None = None,
    window_shards: int = 0,
) -> Indices:
    """The global batches of one pass over a view, shuffled.

    Args:
        view: (n,) sample indices; one that occurs twice is two samples here.
        batch_size: of the global batch.
        labels: (num_samples,) by sample index. Where given, classes are balanced by over-sampling (paper, section 3.3):
            every sample occurs, every class equally often within one, and so does every sample of one class.
            Samples without a label occur once. Without this table, every sample occurs once, and the last batch
            is filled up with the samples that came first.
        shard: (num_samples,) shard numbers by sample index; needed where `window_shards` is not 0.
        window_shards: shards come in random order, and samples are shuffled among this many shards at a time; 0 is
            a full shuffle.

    Returns:
        (steps, batch_size) sample indices, steps = ceil(n / batch_size), where balanced
        ceil((classes present · largest class + samples without a label) / batch_size).

    Raises:
        InputError: the view is empty, or a size makes no sense.
    """
    source = _Source(view, labels, shard, window_shards, ORDER, rng_seed)
    source.check(batch_size)
    steps = -(-source.length // batch_size)
    return source.one_pass(epoch, steps * batch_size).reshape(steps, batch_size)


def labeled_unlabeled_batches(
    labeled: Indices,
    unlabeled: Indices,
    *,
    batch_size: int,
    rng_seed: int,
    epoch: int,
    labeled_labels: Indices | None = None,
    unlabeled_labels: Indices | None = None,
    shard: Shards | None = None,
    window_shards: int = 0,
) -> Indices:
    """The global batches of one sub-epoch of stage 2: half labeled, half unlabeled samples (paper, Algorithm 1).

    A sub-epoch is one pass over the labeled view. The unlabeled view is an endless sequence of passes, of which
    sub-epoch k takes part k: no sample comes twice before all have come once, however few a sub-epoch takes.

    Args:
        labeled, unlabeled: the two views.
        epoch: number of the sub-epoch.
        labeled_labels, unlabeled_labels: (num_samples,) by sample index; where given, the classes of that view are
            balanced, as in `epoch_batches`.
        batch_size, rng_seed, shard, window_shards: as in `epoch_batches`; windows are each view's own.

    Returns:
        (steps, batch_size) sample indices; even slots are labeled, odd slots unlabeled, so that every contiguous
        slice of even size is half and half.

    Raises:
        InputError: the batch size is odd, or one of the views is empty.
    """
    if batch_size % 2:
        raise InputError(
            f"train.batch_size: {batch_size} is odd, but half of a batch is labeled and half unlabeled; "
            f"choose {batch_size - 1 or 2} or {batch_size + 1}"
        )
    if not len(labeled):
        raise InputError("no sample has a kept label; lower mine.min_score or raise mine.min_share")
    if not len(unlabeled):
        raise InputError("every sample has a kept label and none is left unlabeled; raise mine.min_score")
    half = batch_size // 2
    first = _Source(labeled, labeled_labels, shard, window_shards, LABELED, rng_seed)
    second = _Source(unlabeled, unlabeled_labels, shard, window_shards, UNLABELED, rng_seed)
    first.check(half)
    second.check(half)
    steps = -(-first.length // half)
    batches = np.empty((steps, batch_size), dtype=np.int64)
    batches[:, 0::2] = first.one_pass(epoch, steps * half).reshape(steps, half)
    batches[:, 1::2] = second.endless(epoch * steps * half, (epoch + 1) * steps * half).reshape(steps, half)
    return batches


def rank_slice(batches: Indices, rank: int, world_size: int) -> Indices:
    """(steps, batch_size / world_size): the contiguous slots of each global batch that are this rank's.

    Raises:
        InputError: the global batch does not divide among the processes; names sizes that do.
    """
    batch_size = batches.shape[1]
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        sizes = f"{below} or {below + world_size}" if below else f"{world_size}"
        worlds = ", ".join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)
        raise InputError(
            f"batch_size: a global batch of {batch_size} does not divide among {world_size} processes; choose a "
            f"multiple of {world_size}, {sizes} for instance; or start {worlds} processes"
        )
    assert 0 <= rank < world_size
    size = batch_size // world_size
    return batches[:, rank * size : (rank + 1) * size]


def rank_range(num_batches: int, rank: int, world_size: int) -> range:
    """Which of `num_batches` fixed batches are this rank's; shares are contiguous and differ by at most one."""
    assert 0 <= rank < world_size
    return range(rank * num_batches // world_size, (rank + 1) * num_batches // world_size)


def fixed_batches(view: Indices, batch_size: int) -> list[Indices]:
    """A view cut into batches in its own order, each slot once, the last one shorter: the same whatever the world.

    Raises:
        InputError: `batch_size` is less than 1.
    """
    _check_batch_size(batch_size)
    return [view[start : start + batch_size] for start in range(0, len(view), batch_size)]


def draws(batch_size: int, *, rng_seed: int, epoch: int, step: int, num_views: int) -> npt.NDArray[np.float32]:
    """What the augmentation of one global batch is drawn from.

    Returns:
        (num_views, batch_size, 5) uniform in [0, 1): crop_y, crop_x, shift_y, shift_x and flip of every slot.
    """
    size = num_views * batch_size * 5
    words = _Stream(DRAWS, rng_seed, epoch).words(step, (size + 1) // 2)
    upper = words.astype("<u8", copy=False).view("<u4")[:size] >> 8      # 24 bits: all that a float32 below 1 holds
    return (upper.astype(np.float32) * np.float32(2**-24)).reshape(num_views, batch_size, 5)


@dataclass(frozen=True)
class _Stream:
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
class _Source:
    """A view that passes are made over; the arguments of `epoch_batches`."""

    view: Indices
    labels: Indices | None
    shard: Shards | None
    window_shards: int
    purpose: int
    rng_seed: int

    def check(self, batch_size: int) -> None:
        _check_batch_size(batch_size)
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
        stream = _Stream(self.purpose, self.rng_seed, number)
        windows = self._windows(stream)
        if self.labels is None:
            order = self.view[_shuffled(stream.words(SLOTS, len(self.view)), windows)]
            return order if size is None else np.resize(order, size)
        members = self._balanced_members(stream, size or self.length)
        windows = None if windows is None else windows[members]
        return self.view[members[_shuffled(stream.words(SLOTS, len(members)), windows)]]

    def endless(self, start: int, stop: int) -> Indices:
        """Slots start..stop-1 of the sequence of all passes, without making the passes before."""
        length = self.length
        first = start // length
        passes = [self.one_pass(number) for number in range(first, -(-stop // length))]
        return np.concatenate(passes)[start - first * length : stop - first * length]

    def _balanced_members(self, stream: _Stream, size: int) -> Indices:
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
            slots[present[_shuffled(stream.words(EXTRA, present.size))[:left]]] += 1
        else:
            slots[0] = size
        times, once_more = np.divmod(slots, np.maximum(counts, 1))
        # The order within a group is random, so its first members are a fair draw of those that occur once more.
        repeats = np.repeat(
            np.stack([times + 1, times], axis=1).ravel(), np.stack([once_more, counts - once_more], axis=1).ravel()
        )
        return np.repeat(_shuffled(stream.words(MEMBERS, len(group)), group), repeats)

    def _windows(self, stream: _Stream) -> Indices | None:
        """(n,) which window each position of the view belongs to, None where there is one window only."""
        if self.shard is None or not self.window_shards:
            return None
        shard = self.shard[self.view]
        present = np.flatnonzero(np.bincount(shard))
        if present.size <= self.window_shards:
            return None
        turn = np.zeros(present[-1] + 1, dtype=np.int64)
        turn[present[_shuffled(stream.words(SHARDS, present.size))]] = np.arange(present.size)
        return (turn // self.window_shards)[shard]


def _shuffled(words: Words, group: Indices | None = None) -> Indices:
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
    keys.sort()
    keys &= np.uint64(2**position_bits - 1)
    return keys.view(np.int64)


def _number_in_group(sizes: Indices) -> Indices:
    """(sum of sizes,) 0, 1, 2, ... within each of consecutive groups."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is less than 1")
