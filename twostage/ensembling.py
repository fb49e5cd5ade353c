"""Temporal ensembling (Laine & Aila, arXiv 1610.02242, section 2.2): every sample's predictions, averaged over epochs.

Where the Π-model compares two draws of the same network, temporal ensembling compares one draw with the average of what
the network said in earlier epochs: half the work in a step, and steadier targets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ONE = 2**40
"""1.0 in fixed point: sums of integers do not depend on the order of samples, of processes, or of a GPU's threads"""


class TemporalEnsemble:
    """A table of averaged predictions by sample index, and the sums of the running epoch.

    During an epoch, `targets` gives what earlier epochs have left and `record` collects the new predictions z.
    `end_epoch` then updates the rows that were visited: Z ← α Z + (1 - α) z, where z is the mean if a sample was seen
    more than once (over-sampling does that). The target of a row after t updates is Z / (1 - αᵗ), an average whose
    weights sum to 1. A row that an epoch did not visit keeps its target.

    The result is the same, bit for bit, in whatever order and on however many processes the predictions were recorded.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        ensemble_decay: float = 0.6,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begins without any target.

        Args:
            num_samples: of the whole dataset: rows are global sample indices.
            ensemble_decay: α, within 0..1 without 1; 0 keeps the last epoch only.

        Raises:
            ValueError: ensemble_decay is not within 0..1.
        """
        if not 0 <= ensemble_decay < 1:
            raise ValueError(f"ensemble_decay {ensemble_decay}: must be at least 0 and below 1")
        self.ensemble_decay = ensemble_decay
        shape = (num_samples, num_classes)
        self._ensemble = torch.zeros(shape, dtype=torch.float32, device=device)
        self._updates = torch.zeros(num_samples, dtype=torch.int64, device=device)
        self._sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self._visits = torch.zeros(num_samples, dtype=torch.int64, device=device)

    def targets(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """What earlier epochs have left for some samples.

        Args:
            index: (b,) int64 sample indices.

        Returns:
            (b, num_classes) float32 probabilities, and (b,) float32 weights: 1, or 0 for a sample that no epoch has
            visited yet, whose target is zeros. Neither is part of a graph, nor of the table.
        """
        updates = self._updates[index]
        corrections = 1 - self.ensemble_decay ** updates.clamp(min=1).double()
        return self._ensemble[index] / corrections.float()[:, None], (updates > 0).float()

    @torch.no_grad()
    def record(self, index: Tensor, probs: Tensor) -> None:
        """Collects predictions of the running epoch. No graph is kept.

        Args:
            index: (b,) int64 sample indices; a sample may occur more than once, here and in later calls.
            probs: (b, num_classes) probabilities, any floating dtype. Rows that are not finite are left out: the loss
                of such a step is not finite either, and it is not taken.
        """
        finite = probs.isfinite().all(dim=1, keepdim=True)
        self._sums.index_add_(0, index, (torch.where(finite, probs, 0).float() * _ONE).round().long())
        self._visits.index_add_(0, index, finite.flatten().long())

    @torch.no_grad()
    def end_epoch(self, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Updates the rows that were visited in this epoch, and begins the next one.

        Args:
            sum_over_processes: returns the sum of an int64 tensor over all processes; None where there is one. Every
                process must call this, and has the same table afterwards.

        Raises:
            ValueError: what was recorded are not probabilities. The table is as it was.
        """
        sums, visits = self._merged(sum_over_processes)
        means = sums.double() / (visits.clamp(min=1)[:, None] * float(_ONE))
        visited = visits > 0
        # 0.05: probabilities in bfloat16 sum to 1 within a per cent
        wrong = visited & ((means.sum(dim=1) - 1).abs() > 0.05)
        if bool(wrong.any()):
            raise ValueError(
                f"predictions of {int(wrong.sum())} samples, the first being sample {int(wrong.nonzero()[0])}, are not "
                "probabilities: has the training diverged? Try a lower learning rate or precision fp32"
            )
        alpha = self.ensemble_decay
        updated = alpha * self._ensemble + (1 - alpha) * means.float()
        self._ensemble = torch.where(visited[:, None], updated, self._ensemble)
        self._updates += visited
        self._sums.zero_()
        self._visits.zero_()

    def state_dict(self, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """All there is, as plain tensors, at any instant of an epoch.

        Args:
            sum_over_processes: as in `end_epoch`; needed within an epoch, so that what one process saves holds what all
                have recorded. Every process must call it then.
        """
        sums, visits = self._merged(sum_over_processes)
        decay = torch.tensor(self.ensemble_decay, dtype=torch.float64)
        return {
            "ensemble": self._ensemble,
            "updates": self._updates,
            "sums": sums,
            "visits": visits,
            "ensemble_decay": decay,
        }

    def load_state_dict(self, state: dict[str, Tensor], *, with_running_epoch: bool = True) -> None:
        """Takes over a saved state.

        Args:
            with_running_epoch: take over what the running epoch had recorded. Exactly one of several processes must,
                or it is counted more than once.

        Raises:
            ValueError: the state is of another table (shape, decay) or lacks a part.
        """
        own = self.state_dict()
        if missing := own.keys() - state.keys():
            raise ValueError(f"state of a temporal ensemble lacks {', '.join(sorted(missing))}")
        for name, value in own.items():
            if state[name].shape != value.shape:
                raise ValueError(
                    f"state of a temporal ensemble: {name} has shape {tuple(state[name].shape)}, here it is "
                    f"{tuple(value.shape)}: another dataset?"
                )
        saved_decay = float(state["ensemble_decay"])
        if saved_decay != self.ensemble_decay:
            raise ValueError(f"state of a temporal ensemble with decay {saved_decay}, here it is {self.ensemble_decay}")
        self._ensemble.copy_(state["ensemble"])
        self._updates.copy_(state["updates"])
        self._sums.zero_()
        self._visits.zero_()
        if with_running_epoch:
            self._sums.copy_(state["sums"])
            self._visits.copy_(state["visits"])

    def _merged(self, sum_over_processes: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
        """The running epoch's sums and visits over all processes, as copies: a reduction may work in place."""
        sums, visits = self._sums.clone(), self._visits.clone()
        if sum_over_processes is None:
            return sums, visits
        return sum_over_processes(sums), sum_over_processes(visits)
