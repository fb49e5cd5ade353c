"""The plan's promises, as properties: who reads what, when, on however many processes."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostage.data import plan
from twostage.data.schema import NO_LABEL, InputError

WORLDS = (1, 2, 3, 8)
rng_seeds = st.integers(-(2**63), 2**64 - 1)
epochs = st.integers(0, 1000)


@st.composite
def labeled_views(draw: st.DrawFn, min_label: int = NO_LABEL) -> tuple[plan.Indices, plan.Indices]:
    """A dense label table with gaps in the class numbers, and a view of a part of its samples, in any order."""
    table = np.array(draw(st.lists(st.sampled_from([-1, 0, 1, 4, 6, 6, 6]), min_size=1, max_size=80)), dtype=np.int64)
    allowed = np.flatnonzero(table >= min_label)
    size = draw(st.integers(0, len(allowed)))
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(allowed)
    return table, order[:size].astype(np.int64)


def shards_of(num_samples: int, per_shard: int) -> plan.Shards:
    return (np.arange(num_samples) // per_shard).astype(np.int32)


# ---------------------------------------------------------------------------------------------- one pass over a view


@given(size=st.integers(1, 200), batch_size=st.integers(1, 70), rng_seed=rng_seeds, epoch=epochs)
def test_every_sample_once_and_the_last_batch_filled_up(size: int, batch_size: int, rng_seed: int, epoch: int) -> None:
    view = np.arange(size) * 7 + 3
    batches = plan.epoch_batches(view, batch_size=batch_size, rng_seed=rng_seed, epoch=epoch)
    assert batches.shape == (-(-size // batch_size), batch_size) and batches.dtype == np.int64
    flat = batches.ravel()
    assert sorted(flat[:size]) == view.tolist()
    times = Counter(flat.tolist())
    assert set(times) == set(view.tolist()) and max(times.values()) - min(times.values()) <= 1
    if size >= batch_size:
        assert len(set(batches[-1].tolist())) == batch_size, "a sample stands twice in the filled-up batch"


def test_a_sample_that_is_twice_in_the_view_comes_twice() -> None:
    batches = plan.epoch_batches(np.array([5, 5, 9, 5]), batch_size=2, rng_seed=0, epoch=0)
    assert sorted(batches.ravel()) == [5, 5, 5, 9]


@given(labeled_views(), st.integers(1, 30), rng_seeds, epochs, st.sampled_from([0, 1, 3]))
def test_balanced_classes_come_equally_often_within_one(
    labeled: tuple[plan.Indices, plan.Indices], batch_size: int, rng_seed: int, epoch: int, window_shards: int
) -> None:
    table, view = labeled
    if not len(view):
        return
    shard = shards_of(len(table), 5)
    batches = plan.epoch_batches(
        view,
        batch_size=batch_size,
        rng_seed=rng_seed,
        epoch=epoch,
        labels=table,
        shard=shard,
        window_shards=window_shards,
    )
    members: dict[int, list[int]] = {}
    for index in view.tolist():
        members.setdefault(int(table[index]), []).append(index)
    unlabeled = members.pop(NO_LABEL, [])
    slots = len(members) * max(map(len, members.values()), default=0) + len(unlabeled)
    assert batches.shape == (-(-slots // batch_size), batch_size)

    times = Counter(batches.ravel().tolist())
    assert set(times) == set(view.tolist()), "a sample is left out, or is not of the view"
    per_class = [sum(times[index] for index in of_class) for of_class in members.values()]
    if members:
        assert max(per_class) - min(per_class) <= 1
        assert all(times[index] == 1 for index in unlabeled)
    for of_class in members.values():
        numbers = [times[index] for index in of_class]
        assert max(numbers) - min(numbers) <= 1, "samples of one class are not equally often there"


def test_over_sampling_favours_nobody_over_many_epochs() -> None:
    table = np.array([0] * 5 + [1] * 3)
    times = np.zeros(8)
    for epoch in range(600):
        batches = plan.epoch_batches(np.arange(8), batch_size=11, rng_seed=4, epoch=epoch, labels=table)
        times += np.bincount(batches.ravel(), minlength=8)      # 11 slots: 5 or 6 for each class
    assert np.allclose(times[:5] / 600, 5.5 / 5, atol=0.1) and np.allclose(times[5:] / 600, 5.5 / 3, atol=0.1)


def test_all_orders_are_equally_likely() -> None:
    orders = Counter(
        tuple(plan.epoch_batches(np.arange(4), batch_size=4, rng_seed=1, epoch=epoch)[0].tolist())
        for epoch in range(4800)
    )
    expected = 4800 / 24
    chi_square = sum((orders[order] - expected) ** 2 / expected for order in permutations(range(4)))
    assert chi_square < 55, "23 degrees of freedom: more than this once in 5000 tries"


def windows_of(order: list[int], shard: plan.Shards, window_shards: int) -> list[set[int]]:
    """Cuts an order into windows: the shards that are met first make the first one, and so on; asserts it is one."""
    windows: list[set[int]] = []
    while order:
        found: dict[int, None] = {}
        for index in order:
            found.setdefault(int(shard[index]))
            if len(found) == window_shards:
                break
        size = sum(int(shard[index]) in found for index in order)
        assert {int(shard[index]) for index in order[:size]} == set(found), "a sample stands outside of its window"
        windows.append(set(found))
        order = order[size:]
    return windows


@given(
    size=st.integers(1, 150),
    per_shard=st.integers(1, 20),
    window_shards=st.integers(1, 5),
    rng_seed=rng_seeds,
    balanced=st.booleans(),
)
def test_samples_stay_in_their_window(
    size: int, per_shard: int, window_shards: int, rng_seed: int, balanced: bool
) -> None:
    view = np.arange(0, 2 * size, 2)
    shard = shards_of(2 * size, per_shard)
    labels = view.repeat(2) % 3 if balanced else None
    batches = plan.epoch_batches(
        view, batch_size=1, rng_seed=rng_seed, epoch=2, labels=labels, shard=shard, window_shards=window_shards
    )
    windows_of(batches.ravel().tolist(), shard, window_shards)


@pytest.mark.parametrize("labels", [None, (np.arange(1000) % 10 == 0).astype(np.int64)], ids=["once", "balanced"])
def test_windows_are_shuffled_within_and_among(labels: plan.Indices | None) -> None:
    shard = shards_of(1000, 100)

    def order(epoch: int) -> list[int]:
        batches = plan.epoch_batches(
            np.arange(1000), batch_size=10, rng_seed=0, epoch=epoch, labels=labels, shard=shard, window_shards=5
        )
        return [int(index) for index in batches.ravel()]

    first, second = order(0), order(1)
    assert windows_of(first, shard, 5)[0] != windows_of(second, shard, 5)[0], "the same shards first in each epoch"
    same_shard_next = np.mean(shard[first[:499]] == shard[first[1:500]])
    assert 0.12 < same_shard_next < 0.28, "shuffled among five shards, the next sample is of the same one in a fifth"


def test_a_window_of_all_shards_is_a_full_shuffle() -> None:
    shard = shards_of(60, 10)
    arguments: dict[str, Any] = {"batch_size": 6, "rng_seed": 3, "epoch": 1}
    full = plan.epoch_batches(np.arange(60), **arguments)
    assert np.array_equal(full, plan.epoch_batches(np.arange(60), **arguments, shard=shard, window_shards=6))
    assert np.array_equal(full, plan.epoch_batches(np.arange(60), **arguments, shard=shard, window_shards=0))
    assert not np.array_equal(full, plan.epoch_batches(np.arange(60), **arguments, shard=shard, window_shards=5))


def test_order_follows_from_the_arguments_and_nothing_else() -> None:
    def order(**changed: int) -> list[int]:
        arguments: dict[str, Any] = {"batch_size": 8, "rng_seed": 5, "epoch": 3, **changed}
        return [int(index) for index in plan.epoch_batches(np.arange(40), **arguments).ravel()]

    assert order() == order()
    assert len({tuple(order(epoch=epoch)) for epoch in range(20)}) == 20
    assert len({tuple(order(rng_seed=seed)) for seed in (-1, 0, 1, 2**63, 2**64 - 2)}) == 5


def test_a_run_can_be_resumed_with_a_later_numpy() -> None:
    """These numbers were written down when the plan was made. If they change, runs that are under way break."""
    batches = plan.epoch_batches(np.arange(10), batch_size=5, rng_seed=7, epoch=2)
    assert batches.tolist() == GOLDEN_ORDER
    drawn = plan.draws(1, rng_seed=7, epoch=2, step=3, num_views=2)
    assert (drawn * 2**24).astype(int).tolist() == GOLDEN_DRAWS


GOLDEN_ORDER = [[4, 8, 6, 7, 3], [2, 5, 1, 0, 9]]
GOLDEN_DRAWS = [[[1619237, 14913723, 9679399, 638832, 10869459]], [[2314002, 5549542, 6237053, 10420041, 15647742]]]


# -------------------------------------------------------------------------------------------------- ranks, positions


@given(st.integers(1, 40), st.integers(1, 4), rng_seeds, epochs)
def test_ranks_share_out_the_same_global_batches(size: int, times: int, rng_seed: int, epoch: int) -> None:
    batches = plan.epoch_batches(np.arange(size), batch_size=24 * times, rng_seed=rng_seed, epoch=epoch)
    position = np.arange(batches.size).reshape(batches.shape)
    for world_size in WORLDS:
        slices = [plan.rank_slice(batches, rank, world_size) for rank in range(world_size)]
        assert {part.shape for part in slices} == {(len(batches), 24 * times // world_size)}
        assert np.array_equal(np.concatenate(slices, axis=1), batches)
        slots = [set(plan.rank_slice(position, rank, world_size).ravel().tolist()) for rank in range(world_size)]
        assert sum(map(len, slots)) == len(set().union(*slots)) == batches.size, "two ranks hold the same slot"


@given(st.data())
def test_starting_at_a_position_is_skipping_to_it(data: st.DataObject) -> None:
    """A rank that starts at step k, alone and in another world, sees what an uninterrupted run sees from there on."""
    arguments: dict[str, Any] = {"batch_size": 24, "rng_seed": data.draw(rng_seeds), "epoch": data.draw(epochs)}
    whole = plan.epoch_batches(np.arange(100), **arguments)
    step = data.draw(st.integers(0, len(whole)))
    world_size = data.draw(st.sampled_from(WORLDS))
    rank = data.draw(st.integers(0, world_size - 1))
    fresh = plan.rank_slice(plan.epoch_batches(np.arange(100), **arguments), rank, world_size)[step:]
    size = 24 // world_size
    assert np.array_equal(fresh, whole[step:, rank * size : (rank + 1) * size])


def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do() -> None:
    batches = np.zeros((3, 10), dtype=np.int64)
    with pytest.raises(InputError, match=r"10 does not divide among 4 .* 8 or 12 .* 1, 2, 5, 10 processes"):
        plan.rank_slice(batches, 0, 4)
    with pytest.raises(InputError, match="multiple of 16, 16 for instance"):
        plan.rank_slice(batches, 3, 16)


@given(st.integers(0, 100), st.integers(1, 20))
def test_fixed_batches_are_shared_out_evenly(num_batches: int, world_size: int) -> None:
    shares = [plan.rank_range(num_batches, rank, world_size) for rank in range(world_size)]
    assert [number for share in shares for number in share] == list(range(num_batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 100), st.integers(1, 20))
def test_fixed_batches_hold_the_view_in_order(size: int, batch_size: int) -> None:
    view = np.arange(size)[::-1].astype(np.int64)
    batches = plan.fixed_batches(view, batch_size)
    assert [index for batch in batches for index in batch] == view.tolist()
    assert all(len(batch) == batch_size for batch in batches[:-1]) and all(len(batch) for batch in batches)


# ----------------------------------------------------------------------------------------------- half labeled, half not


@given(
    num_labeled=st.integers(1, 40),
    num_unlabeled=st.integers(1, 60),
    half=st.integers(1, 12),
    rng_seed=rng_seeds,
    window_shards=st.sampled_from([0, 2]),
)
def test_the_unlabeled_stream_goes_on_across_sub_epochs(
    num_labeled: int, num_unlabeled: int, half: int, rng_seed: int, window_shards: int
) -> None:
    labeled = np.arange(num_labeled)
    unlabeled = np.arange(num_unlabeled) + 1000
    shard = shards_of(1000 + num_unlabeled, 7)
    stream: list[int] = []
    for epoch in range(5):
        batches = plan.labeled_unlabeled_batches(
            labeled,
            unlabeled,
            batch_size=2 * half,
            rng_seed=rng_seed,
            epoch=epoch,
            shard=shard,
            window_shards=window_shards,
        )
        assert batches.shape == (-(-num_labeled // half), 2 * half)
        assert sorted(batches[:, 0::2].ravel()[:num_labeled]) == labeled.tolist(), "not one pass over the labeled view"
        stream += batches[:, 1::2].ravel().tolist()
    for start in range(0, len(stream), num_unlabeled):
        a_pass = stream[start : start + num_unlabeled]
        assert len(set(a_pass)) == len(a_pass) and set(a_pass) <= set(unlabeled.tolist())


@given(labeled_views(min_label=0), labeled_views(), st.integers(1, 10), rng_seeds)
def test_a_pass_over_the_larger_view_reaches_every_sample_of_both(
    first: tuple[plan.Indices, plan.Indices], second: tuple[plan.Indices, plan.Indices], half: int, rng_seed: int
) -> None:
    (seeds, labeled), (_, unlabeled) = first, second
    if not len(labeled) or not len(unlabeled):
        return
    for labels in (seeds, None):
        batches, *named = (
            plan.labeled_unlabeled_batches(
                labeled, unlabeled, batch_size=2 * half, rng_seed=rng_seed, epoch=0, labeled_labels=labels,
                pass_over=pass_over,
            )
            for pass_over in ("larger", "labeled", "unlabeled")
        )
        assert set(batches[:, 0::2].ravel()) == set(labeled) and set(batches[:, 1::2].ravel()) == set(unlabeled)
        assert len(batches) == max(len(other) for other in named)
        assert any(np.array_equal(batches, other) for other in named)


@given(labeled_views(min_label=0), labeled_views(), st.integers(1, 10), rng_seeds)
def test_both_halves_are_balanced_where_asked(
    first: tuple[plan.Indices, plan.Indices], second: tuple[plan.Indices, plan.Indices], half: int, rng_seed: int
) -> None:
    (seeds, labeled), (noisy, unlabeled) = first, second
    if not len(labeled) or not len(unlabeled):
        return
    stream: list[int] = []
    for epoch in range(4):
        batches = plan.labeled_unlabeled_batches(
            labeled,
            unlabeled,
            batch_size=2 * half,
            rng_seed=rng_seed,
            epoch=epoch,
            labeled_labels=seeds,
            unlabeled_labels=noisy,
        )
        times = np.bincount(seeds[batches[:, 0::2].ravel()])
        assert np.ptp(times[times > 0]) <= 1 and set(batches[:, 0::2].ravel()) == set(labeled)
        stream += batches[:, 1::2].ravel().tolist()
    counts = Counter(noisy[unlabeled].tolist())
    without = counts.pop(NO_LABEL, 0)
    length = without + len(counts) * max(counts.values(), default=0)
    for start in range(0, len(stream) - length + 1, length):
        a_pass = stream[start : start + length]
        assert set(a_pass) == set(unlabeled.tolist()), "a sample starves"
        times = np.bincount(noisy[[index for index in a_pass if noisy[index] != NO_LABEL]], minlength=1)
        assert np.ptp(times[times > 0]) == 0 if times.any() else True


@given(st.integers(1, 96), st.integers(1, 8), st.none() | st.integers(-1, 100), st.booleans())
def test_pieces_are_equal_and_what_is_refused_names_what_is_not(
    batch_size: int, world_size: int, micro_batch: int | None, halves: bool
) -> None:
    slots, unit = batch_size // world_size, 2 if halves else 1
    try:
        pieces = plan.num_pieces(batch_size, world_size, micro_batch, halves=halves)
    except InputError as error:
        if batch_size % (world_size * unit):
            assert f"{batch_size} does not divide" in str(error)
            return
        allowed = [int(n) for n in str(error).rpartition("allowed: ")[2].split(", ")]
        assert "runtime.micro_batch" in str(error) and micro_batch not in allowed and slots in allowed
        assert {plan.num_pieces(batch_size, world_size, n, halves=halves) * n for n in allowed} == {slots}
        return
    assert batch_size % (world_size * unit) == 0 and slots % (pieces * unit) == 0
    assert pieces == (1 if micro_batch is None or micro_batch >= slots else slots // micro_batch)


@given(st.integers(1, 6), st.sampled_from(WORLDS), rng_seeds)
def test_every_rank_gets_half_and_half(pairs: int, world_size: int, rng_seed: int) -> None:
    batches = plan.labeled_unlabeled_batches(
        np.arange(30), np.arange(30, 90), batch_size=2 * pairs * world_size, rng_seed=rng_seed, epoch=1
    )
    for rank in range(world_size):
        is_labeled = plan.rank_slice(batches, rank, world_size) < 30
        assert (is_labeled.sum(axis=1) == pairs).all()


def test_the_two_streams_do_not_follow_each_other() -> None:
    view = np.arange(500)
    arguments: dict[str, Any] = {"rng_seed": 2, "epoch": 0}
    batches = plan.labeled_unlabeled_batches(view, view, batch_size=100, **arguments)
    orders = [batches[:, 0::2].ravel(), batches[:, 1::2].ravel()]
    orders.append(plan.epoch_batches(view, batch_size=50, **arguments).ravel())
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.2


# ----------------------------------------------------------------------------------------------------------- holdout


@given(labeled_views(), st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.75]), rng_seeds)
def test_holdout_takes_its_share_of_every_class(
    labeled: tuple[plan.Indices, plan.Indices], share: float, rng_seed: int
) -> None:
    table, view = labeled
    counts = Counter(table[view].tolist())
    counts.pop(NO_LABEL, None)
    wanted = {c: int(share * n + 0.5) if n > 1 else 0 for c, n in counts.items()}
    if not any(wanted.values()) or any(wanted[c] >= counts[c] for c in counts):
        with pytest.raises(InputError, match=r"holds out (no|every) sample"):
            plan.holdout(table, view, share, rng_seed)
        return
    train, val = plan.holdout(table, view, share, rng_seed)
    assert sorted([*train, *val]) == sorted(view)
    assert train.tolist() == sorted(train) and val.tolist() == sorted(val)
    assert Counter(table[val].tolist()) == {c: n for c, n in wanted.items() if n}


def test_holdout_draws_fairly_and_follows_from_the_seed() -> None:
    table = np.repeat([0, 1], [10, 4])
    times = np.zeros(14)
    for seed in range(600):
        train, val = plan.holdout(table, np.arange(14), 0.5, seed)
        times[val] += 1
        assert len(train) == 7
    assert np.allclose(times / 600, 0.5, atol=0.1)
    assert np.array_equal(plan.holdout(table, np.arange(14), 0.5, 3)[1], plan.holdout(table, np.arange(14), 0.5, 3)[1])


# ------------------------------------------------------------------------------------------------------------- draws


@given(st.integers(1, 50), rng_seeds, epochs, st.integers(0, 10**6), st.integers(1, 3))
def test_draws_lie_within_0_and_1(batch_size: int, rng_seed: int, epoch: int, step: int, num_views: int) -> None:
    drawn = plan.draws(batch_size, rng_seed=rng_seed, epoch=epoch, step=step, num_views=num_views)
    assert drawn.shape == (num_views, batch_size, 5) and drawn.dtype == np.float32
    assert (drawn >= 0).all() and (drawn < 1).all()
    again = plan.draws(batch_size, rng_seed=rng_seed, epoch=epoch, step=step, num_views=num_views)
    assert np.array_equal(drawn, again), "a step that is started at draws otherwise"


def test_draws_are_uniform_and_independent() -> None:
    drawn = np.stack([plan.draws(64, rng_seed=9, epoch=e, step=s, num_views=2) for e in range(4) for s in range(40)])
    columns = drawn.reshape(160, -1)                        # one row a step
    counts = np.histogram(columns, bins=50, range=(0, 1))[0]
    expected = columns.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 95, "49 degrees of freedom: once in 10000 tries"
    assert len(np.unique(columns)) > 0.99 * columns.size, "steps, epochs, slots or views share their numbers"
    centred = columns - 0.5
    assert abs((centred[1:] * centred[:-1]).mean()) < 0.002, "a step follows the one before"
    assert abs((drawn[:, 0] - 0.5).ravel() @ (drawn[:, 1] - 0.5).ravel()) / drawn[:, 0].size < 0.002, "views agree"
    assert abs((drawn[..., 1:] - 0.5) * (drawn[..., :-1] - 0.5)).mean() < 0.07      # |.| of independent ones: 1/16


# ------------------------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 2.0, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"data\.holdout: .* share between 0 and 1"):
        plan.holdout(np.zeros(10, dtype=np.int64), np.arange(10), share, 0)


def test_holdout_says_which_class_would_be_gone() -> None:
    table = np.array([0] * 10 + [3] * 2)
    with pytest.raises(InputError, match=r"every sample of class 3 \(class 3 has 2\)"):
        plan.holdout(table, np.arange(12), 0.8, 0)
    with pytest.raises(InputError, match="holds out no sample"):
        plan.holdout(table, np.arange(12), 0.01, 0)
    with pytest.raises(InputError, match="holds out no sample"):
        plan.holdout(table, np.arange(0), 0.5, 0)


def test_wrong_sizes_are_refused() -> None:
    view, none = np.arange(4), np.arange(0)
    fixed: dict[str, Any] = {"rng_seed": 0, "epoch": 0}
    with pytest.raises(InputError, match="holds no sample"):
        plan.epoch_batches(none, batch_size=2, **fixed)
    with pytest.raises(InputError, match="0 is less than 1"):
        plan.epoch_batches(view, batch_size=0, **fixed)
    with pytest.raises(InputError, match="less than 1"):
        plan.fixed_batches(view, 0)
    with pytest.raises(InputError, match="window_shards: -1 is negative"):
        plan.epoch_batches(view, batch_size=2, shard=shards_of(4, 2), window_shards=-1, **fixed)
    with pytest.raises(InputError, match=r"7 is odd.* choose 6 or 8"):
        plan.labeled_unlabeled_batches(view, view, batch_size=7, **fixed)
    with pytest.raises(InputError, match="no sample has a kept label"):
        plan.labeled_unlabeled_batches(none, view, batch_size=2, **fixed)
    with pytest.raises(InputError, match="none is left unlabeled"):
        plan.labeled_unlabeled_batches(view, none, batch_size=2, **fixed)
