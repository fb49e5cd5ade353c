"""Temporal ensembling against numpy: over several epochs, with partial epochs, and with several processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from twostage.ensembling import TemporalEnsemble

SAMPLES, CLASSES = 40, 6
EVERYTHING = torch.arange(SAMPLES)
Visits = list[tuple[Tensor, Tensor]]


class InNumpy:
    """The method as its paper has it, with a count of updates for each row."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.table = np.zeros((SAMPLES, CLASSES))
        self.times = np.zeros(SAMPLES, dtype=int)

    def epoch(self, visits: Visits) -> None:
        index = np.concatenate([i.numpy() for i, _ in visits])
        probs = np.concatenate([p.double().numpy() for _, p in visits])
        for sample in np.unique(index):
            mean = probs[index == sample].mean(axis=0)
            self.table[sample] = self.decay * self.table[sample] + (1 - self.decay) * mean
            self.times[sample] += 1

    def targets(self) -> npt.NDArray[np.float64]:
        return np.array(
            [z / (1 - self.decay**t) if t else 0 * z for z, t in zip(self.table, self.times, strict=True)]
        )


def random_epoch(seed: int, share: float = 1.0, repeats: int = 0, batch: int = 7) -> Visits:
    """Batches over a share of the samples in random order, `repeats` of which occur more than once."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(SAMPLES, generator=generator)[: round(share * SAMPLES)]
    index = torch.cat([order, order[torch.randint(len(order), (repeats,), generator=generator)]])
    index = index[torch.randperm(len(index), generator=generator)]
    probs = torch.softmax(3 * torch.randn(len(index), CLASSES, generator=generator), dim=1)
    return list(zip(index.split(batch), probs.split(batch), strict=True))


EPOCHS = [random_epoch(1), random_epoch(2, 0.5), random_epoch(3, 0.3, 20), random_epoch(4, repeats=9), random_epoch(5)]
PARTIAL_FIRST = [random_epoch(6, 0.2), random_epoch(7, 0.4, 30), random_epoch(8, 0.1), random_epoch(9, 0.6)]


def run(epochs: list[Visits], decay: float = 0.6) -> TemporalEnsemble:
    ensemble = TemporalEnsemble(SAMPLES, CLASSES, ensemble_decay=decay)
    for visits in epochs:
        for index, probs in visits:
            ensemble.record(index, probs)
        ensemble.end_epoch()
    return ensemble


def same_state(a: TemporalEnsemble, b: TemporalEnsemble) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])


@pytest.mark.parametrize("epochs", [EPOCHS, PARTIAL_FIRST], ids=["full first", "partial first"])
@pytest.mark.parametrize("decay", [0.6, 0.0, 0.99])
def test_equals_numpy_after_every_epoch(epochs: list[Visits], decay: float) -> None:
    reference = InNumpy(decay)
    for number, visits in enumerate(epochs, start=1):
        reference.epoch(visits)
        targets, weights = run(epochs[:number], decay).targets(EVERYTHING)
        np.testing.assert_allclose(targets.numpy(), reference.targets(), rtol=2e-6, atol=1e-7)
        np.testing.assert_array_equal(weights.numpy(), reference.times > 0)


def test_targets_are_probabilities_and_samples_never_visited_have_none() -> None:
    targets, weights = run(PARTIAL_FIRST[:1]).targets(EVERYTHING)
    assert 0 < weights.sum() < SAMPLES
    torch.testing.assert_close(targets.sum(dim=1), weights)


def test_the_running_epoch_does_not_change_its_own_targets() -> None:
    ensemble = run(EPOCHS[:1])
    before, _ = ensemble.targets(EVERYTHING)
    for index, probs in EPOCHS[1]:
        ensemble.record(index, probs)
    assert torch.equal(ensemble.targets(EVERYTHING)[0], before)
    ensemble.end_epoch()
    assert not torch.equal(ensemble.targets(EVERYTHING)[0], before)


def test_a_row_that_an_epoch_does_not_visit_keeps_its_target() -> None:
    before, _ = run(EPOCHS[:1]).targets(EVERYTHING)
    after, _ = run(EPOCHS[:2]).targets(EVERYTHING)
    visited = torch.cat([index for index, _ in EPOCHS[1]])
    rest = torch.tensor(np.setdiff1d(np.arange(SAMPLES), visited.numpy()))
    assert torch.equal(after[rest], before[rest])


def test_order_and_batches_do_not_change_a_bit() -> None:
    index = torch.cat([i for i, _ in EPOCHS[2]])
    probs = torch.cat([p for _, p in EPOCHS[2]])
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    assert same_state(run([EPOCHS[0], [(index[order], probs[order])]]), run([EPOCHS[0], EPOCHS[2]]))


def test_nothing_recorded_or_read_is_part_of_a_graph_or_of_the_table() -> None:
    ensemble = TemporalEnsemble(SAMPLES, CLASSES)
    probs = torch.full((SAMPLES, CLASSES), 1 / CLASSES).requires_grad_()
    ensemble.record(EVERYTHING, probs)
    ensemble.end_epoch()
    targets, weights = ensemble.targets(EVERYTHING)
    assert not targets.requires_grad
    assert not weights.requires_grad
    targets.zero_()
    assert ensemble.targets(EVERYTHING)[0].sum() > 0


@pytest.mark.parametrize("bad", [0.5, -1.0])
@pytest.mark.parametrize("classes", [6, 7])
def test_what_are_no_probabilities_is_told_and_leaves_the_table_as_it_was(bad: float, classes: int) -> None:
    ensemble = TemporalEnsemble(3, classes)
    good = torch.full((3, classes), 1 / classes)
    ensemble.record(torch.arange(3), good)
    ensemble.end_epoch()
    before, _ = ensemble.targets(torch.arange(3))
    ensemble.record(torch.arange(3), good)
    ensemble.record(torch.tensor([1, 1]), torch.full((2, classes), bad))
    with pytest.raises(ValueError, match=r"1 samples, the first being sample 1.*diverged"):
        ensemble.end_epoch()
    assert torch.equal(ensemble.targets(torch.arange(3))[0], before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_predictions_of_a_step_that_is_not_taken_are_left_out(bad: float) -> None:
    ensemble = TemporalEnsemble(3, 4)
    good = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3)
    ensemble.record(torch.arange(3), good)
    spoiled = torch.full((2, 4), 0.25)
    spoiled[0, 3] = bad
    ensemble.record(torch.tensor([1, 2]), spoiled)
    ensemble.end_epoch()
    targets, weights = ensemble.targets(torch.arange(3))
    assert torch.allclose(targets[:2], good[:2]) and torch.allclose(targets[2], (good[2] + 0.25) / 2)
    assert weights.tolist() == [1, 1, 1]


def shares_of(visits: Visits, rank: int, world_size: int) -> Visits:
    return [(index[rank::world_size], probs[rank::world_size]) for index, probs in visits]


class Meeting:
    """Sums tensors over threads that play processes."""

    def __init__(self, size: int) -> None:
        self.barrier, self.given = threading.Barrier(size, timeout=20), [torch.empty(0)] * size

    def hook(self, rank: int) -> Callable[[Tensor], Tensor]:
        def add(tensor: Tensor) -> Tensor:
            self.given[rank] = tensor
            self.barrier.wait()
            total = torch.stack(self.given).sum(dim=0)
            self.barrier.wait()
            return total

        return add


def in_threads(world_size: int, work: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """work(rank, sum_over_processes) of every rank at once, each in a thread."""
    meeting = Meeting(world_size)
    results: list[Any] = [None] * world_size

    def one(rank: int) -> None:
        results[rank] = work(rank, meeting.hook(rank))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None for result in results)
    return results


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_have_the_table_of_one_bit_for_bit(world_size: int) -> None:
    def work(rank: int, add: Callable[[Tensor], Tensor]) -> TemporalEnsemble:
        ensemble = TemporalEnsemble(SAMPLES, CLASSES)
        for visits in PARTIAL_FIRST:
            for index, probs in shares_of(visits, rank, world_size):
                ensemble.record(index, probs)
            ensemble.end_epoch(add)
        return ensemble

    for ensemble in in_threads(world_size, work):
        assert same_state(ensemble, run(PARTIAL_FIRST))


def _gloo_rank(rank: int, world_size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size)

    def add(tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    ensemble = TemporalEnsemble(SAMPLES, CLASSES)
    for visits in EPOCHS:
        for index, probs in shares_of(visits, rank, world_size):
            ensemble.record(index, probs)
        ensemble.end_epoch(add)
    torch.save(ensemble.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_table_of_one_bit_for_bit(tmp_path: Path) -> None:
    mp.spawn(_gloo_rank, args=(2, tmp_path), nprocs=2)
    expected = run(EPOCHS).state_dict()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_resuming_within_an_epoch_changes_nothing() -> None:
    whole, cut = run(EPOCHS[:2]), run(EPOCHS[:1])
    for index, probs in EPOCHS[1][:3]:
        cut.record(index, probs)
    resumed = TemporalEnsemble(SAMPLES, CLASSES)
    resumed.record(*EPOCHS[3][0])       # what it held before must not matter
    resumed.load_state_dict({name: value.clone() for name, value in cut.state_dict().items()})
    for index, probs in EPOCHS[1][3:]:
        resumed.record(index, probs)
    resumed.end_epoch()
    assert same_state(resumed, whole)


def test_two_ranks_save_within_an_epoch_and_three_go_on() -> None:
    """In an epoch with repeats, so that counting the first half more than once would show."""

    def first_half(rank: int, add: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        ensemble = run(EPOCHS[:1])
        for index, probs in shares_of(EPOCHS[2][:2], rank, 2):
            ensemble.record(index, probs)
        return {name: value.clone() for name, value in ensemble.state_dict(add).items()}

    saved = in_threads(2, first_half)
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])

    def second_half(rank: int, add: Callable[[Tensor], Tensor]) -> TemporalEnsemble:
        ensemble = TemporalEnsemble(SAMPLES, CLASSES)
        ensemble.load_state_dict(saved[0], with_running_epoch=rank == 0)
        for index, probs in shares_of(EPOCHS[2][2:], rank, 3):
            ensemble.record(index, probs)
        ensemble.end_epoch(add)
        return ensemble

    for ensemble in in_threads(3, second_half):
        assert same_state(ensemble, run([EPOCHS[0], EPOCHS[2]]))


def test_saving_within_an_epoch_leaves_it_alone_even_if_the_reduction_works_in_place() -> None:
    ensemble, untouched = run(EPOCHS[:1]), run(EPOCHS[:1])
    for index, probs in EPOCHS[2]:
        ensemble.record(index, probs)
        untouched.record(index, probs)
    ensemble.state_dict(lambda tensor: tensor.mul_(2))
    assert same_state(ensemble, untouched)


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = run(EPOCHS[:1]).state_dict()
    with pytest.raises(ValueError, match=r"ensemble has shape \(40, 6\), here it is \(41, 6\)"):
        TemporalEnsemble(SAMPLES + 1, CLASSES).load_state_dict(state)
    with pytest.raises(ValueError, match=r"decay 0\.6, here it is 0\.9"):
        TemporalEnsemble(SAMPLES, CLASSES, ensemble_decay=0.9).load_state_dict(state)
    with pytest.raises(ValueError, match="lacks updates"):
        TemporalEnsemble(SAMPLES, CLASSES).load_state_dict({k: v for k, v in state.items() if k != "updates"})
    with pytest.raises(ValueError, match=r"ensemble_decay 1\.0"):
        TemporalEnsemble(SAMPLES, CLASSES, ensemble_decay=1.0)
