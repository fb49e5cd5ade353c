"""The plan: which samples stand in which slot of which global batch, and how each is augmented.

Pure functions of (view, rng_seed, epoch); numpy only. The number of processes enters nowhere but in `rank_slice` and
`rank_range`, so any number of them sees the same global batches, and to start at a position is to slice.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from twostage.data.passes import MEMBERS, Source, Stream, check_batch_size, number_in_group, shuffled
from twostage.data.passes import Indices as Indices
from twostage.data.passes import Shards as Shards
from twostage.data.schema import NO_LABEL, InputError

PassOver = Literal["labeled", "unlabeled", "larger"]
Unlabeled = Literal["rest", "all"]
ORDER, HOLDOUT, DRAWS, LABELED, UNLABELED = range(1, 6)     # one random stream for each purpose


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
    exact = Fraction(str(float(share)))     # as floats, 0.35 * 90 is a little less than 31.5
    wanted = np.array([math.floor(exact * n + Fraction(1, 2)) for n in counts.tolist()], dtype=np.int64)
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
    by_class = shuffled(Stream(HOLDOUT, rng_seed, 0).words(MEMBERS, len(view)), group)
    taken = by_class[number_in_group(sizes) < np.repeat(wanted, sizes)]
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
    source = Source(view, labels, shard, window_shards, ORDER, rng_seed)
    source.check(batch_size)
    steps = -(-source.length // batch_size)
    return source.one_pass(epoch, steps * batch_size).reshape(steps, batch_size)


def check_halves(batch_size: int) -> None:
    """Refuses, by InputError, a global batch that cannot be half labeled and half unlabeled."""
    if batch_size % 2:
        raise InputError(
            f"train.batch_size: {batch_size} is odd, but half of a batch is labeled and half unlabeled; "
            f"choose {batch_size - 1 or 2} or {batch_size + 1}"
        )


def unlabeled_view(train: Indices, seeds: Indices, unlabeled: Unlabeled) -> Indices:
    """The unlabeled view of stage 2, which its training view and the (num_samples,) kept labels make."""
    return np.setdiff1d(train, np.flatnonzero(seeds != NO_LABEL)) if unlabeled == "rest" else train


def labeled_unlabeled_batches(
    labeled: Indices,
    unlabeled: Indices,
    *,
    batch_size: int,
    rng_seed: int,
    epoch: int,
    pass_over: PassOver = "labeled",
    labeled_labels: Indices | None = None,
    unlabeled_labels: Indices | None = None,
    shard: Shards | None = None,
    window_shards: int = 0,
) -> Indices:
    """The global batches of one sub-epoch of stage 2: half labeled, half unlabeled samples (paper, Algorithm 1).

    A sub-epoch is one pass over the view that `pass_over` names, or over the one with more slots. The other is an
    endless sequence of passes, of which sub-epoch k takes part k: no sample comes twice before all have come once,
    however few a sub-epoch takes.

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
    check_halves(batch_size)
    if not len(labeled):
        raise InputError("no sample has a kept label; raise mine.min_share, or lower mine.accept_score")
    if not len(unlabeled):
        raise InputError("every sample has a kept label and none is left unlabeled; set train.unlabeled: all")
    half = batch_size // 2
    first = Source(labeled, labeled_labels, shard, window_shards, LABELED, rng_seed)
    second = Source(unlabeled, unlabeled_labels, shard, window_shards, UNLABELED, rng_seed)
    first.check(half)
    second.check(half)
    by_labeled = passes_over_labeled(pass_over, first.length, second.length)
    whole, other = (first, second) if by_labeled else (second, first)
    steps = -(-whole.length // half)
    slots = steps * half
    batches = np.empty((steps, batch_size), dtype=np.int64)
    batches[:, 0 if whole is first else 1 :: 2] = whole.one_pass(epoch, slots).reshape(steps, half)
    batches[:, 1 if whole is first else 0 :: 2] = other.endless(epoch * slots, (epoch + 1) * slots).reshape(steps, half)
    return batches


def check_division(batch_size: int, world_size: int, *, halves: bool = False, section: str = "") -> None:
    """Checks that each process gets equally many slots of a global batch; with `halves`, of its labeled and other half.

    Args:
        section: of the configuration that the batch size is in, with a dot behind it, for the message.

    Raises:
        InputError: it does not divide; names sizes, and numbers of processes, that do.
    """
    unit = world_size * (2 if halves else 1)
    if batch_size >= 1 and batch_size % unit == 0:
        return
    below = batch_size // unit * unit
    sizes = f"{below} or {below + unit}" if below > 0 else f"{unit}"
    each = batch_size // 2 if halves and batch_size % 2 == 0 else 0 if halves else batch_size
    worlds = [str(n) for n in range(1, each + 1) if each % n == 0]
    instead = f"; or start {', '.join(worlds)} processes" if worlds else ""
    what = "into a labeled and an unlabeled half for each of" if halves else "among"
    raise InputError(
        f"{section}batch_size: a global batch of {batch_size} does not divide {what} {world_size} processes; choose a "
        f"multiple of {unit}, {sizes} for instance{instead}"
    )


def passes_over_labeled(pass_over: PassOver, labeled_slots: int, unlabeled_slots: int) -> bool:
    """Whether a sub-epoch is one pass over the labeled view, whose slots are given, or over the unlabeled one."""
    return pass_over == "labeled" or (pass_over == "larger" and labeled_slots >= unlabeled_slots)


def rank_slice(batches: Indices, rank: int, world_size: int, pieces: int = 1) -> Indices:
    """(steps · pieces, batch_size / world_size / pieces): this rank's contiguous slots of each global batch.

    Raises:
        InputError: the global batch does not divide among the processes; names sizes that do.
    """
    batch_size = batches.shape[1]
    check_division(batch_size, world_size)
    assert 0 <= rank < world_size
    size = batch_size // world_size
    return batches[:, rank * size : (rank + 1) * size].reshape(len(batches) * pieces, size // pieces)


def num_pieces(
    batch_size: int, world_size: int, micro_batch: int | None, *, halves: bool = False, section: str = ""
) -> int:
    """In how many equal pieces a process takes its slice of a global batch, one after the other, in one step.

    Args:
        micro_batch: how many slots a process takes at once; None, or more than its slice has: all of them.
        halves: whether every piece must be half labeled, half unlabeled: of even size.
        section: as in `check_division`.

    Raises:
        InputError: the slice does not divide so; names the sizes that are allowed.
    """
    slots, unit = batch_size // world_size, 2 if halves else 1
    check_division(batch_size, world_size, halves=halves, section=section)
    if micro_batch is None or (micro_batch >= slots and micro_batch >= unit):
        return 1
    if micro_batch < 1 or slots % micro_batch or micro_batch % unit:
        allowed = ", ".join(str(n) for n in range(unit, slots + 1, unit) if slots % n == 0)
        whose = f"{batch_size} ({section}batch_size)" if section else f"{batch_size}"
        raise InputError(
            f"runtime.micro_batch: {micro_batch} does not divide the {slots} slots of a global batch of {whose} that "
            f"each of {world_size} process(es) takes{' into halves' if halves else ''}; allowed: {allowed}"
        )
    return slots // micro_batch


def rank_range(num_batches: int, rank: int, world_size: int) -> range:
    """Which of `num_batches` fixed batches are this rank's; shares are contiguous and differ by at most one."""
    assert 0 <= rank < world_size
    return range(rank * num_batches // world_size, (rank + 1) * num_batches // world_size)


def fixed_batches(view: Indices, batch_size: int) -> list[Indices]:
    """A view cut into batches in its own order, each slot once, the last one shorter: the same whatever the world.

    Raises:
        InputError: `batch_size` is less than 1.
    """
    check_batch_size(batch_size)
    return [view[start : start + batch_size] for start in range(0, len(view), batch_size)]


def draws(batch_size: int, *, rng_seed: int, epoch: int, step: int, num_views: int) -> npt.NDArray[np.float32]:
    """What the augmentation of one global batch is drawn from.

    Returns:
        (num_views, batch_size, 5) uniform in [0, 1): crop_y, crop_x, shift_y, shift_x and flip of every slot.
    """
    size = num_views * batch_size * 5
    words = Stream(DRAWS, rng_seed, epoch).words(step, (size + 1) // 2)
    upper = words.astype("<u8", copy=False).view("<u4")[:size] >> 8      # 24 bits: all that a float32 below 1 holds
    return (upper.astype(np.float32) * np.float32(2**-24)).reshape(num_views, batch_size, 5)
