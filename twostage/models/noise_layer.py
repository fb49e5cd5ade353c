"""The bottom-up noise layer: a linear layer behind the softmax that learns how labels are flipped (Table 4, row 2).

Source: Sukhbaatar, Bruna, Paluri, Bourdev, Fergus, "Training convolutional networks with noisy labels", 2014.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn

from twostage.losses import PROBABILITY_FLOOR

MAX_MOVE: Final = 0.01
"""how much of a row's probability one step may move"""


class NoiseLayer(nn.Module):
    """log P(given label | image) from the logits of the clean label: log Σ_c softmax(logits)[c] T[c, j].

    T is learned with the network. It begins as the identity, where the layer changes nothing, and is held there until
    the network has learned something (`held`): both at once would be free to permute the classes. Rows are brought back
    to probabilities after every step of the optimizer (`settle_`). The likelihood alone leaves T at the identity, as a
    large network can learn wrong labels by heart; a penalty pulls it away (`penalty`).

    Near the identity, a label that the network is sure is wrong has a gradient of up to 1e7 in T, and a single step
    would throw T anywhere: so a step moves a row by MAX_MOVE at the most.
    """

    transition: nn.Parameter
    """(num_classes, num_classes) T, float32; row c holds P(given label | clean label c): its authors' Q, transposed"""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.transition = nn.Parameter(torch.eye(num_classes))
        self.held = True
        """whether T stays the identity for now"""
        self._before: Tensor
        self.register_buffer("_before", torch.eye(num_classes), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(b, num_classes) float32 log-probabilities of the given label, from logits of any floating dtype.

        They are logits too: the cross-entropy of them is -log P(given label), and with T the identity it is the
        cross-entropy of `logits`. Probabilities are held at 1e-7 or more, without gradient there.
        """
        transition: Tensor = self.transition
        self._before = transition.detach().clone()
        if self.held:
            transition = transition * 0 + transition.detach()     # a gradient of 0: DDP waits for one
        # autocast would take the product in half precision, where a probability of 1e-4 has two digits
        with torch.autocast(logits.device.type, enabled=False):
            probs = torch.softmax(logits.to(torch.promote_types(logits.dtype, transition.dtype)), dim=1)
            return (probs @ transition.to(probs.dtype)).clamp(min=PROBABILITY_FLOOR).log()

    @torch.no_grad()
    def settle_(self) -> None:
        """Makes each row of T probabilities again, not far from where it was; call it after every optimizer's step."""
        if self.held:
            nn.init.eye_(self.transition)
            return
        move = onto_simplex(self.transition) - self._before
        size = move.abs().sum(dim=1, keepdim=True) / 2
        self.transition.copy_(self._before + move * (MAX_MOVE / size.clamp(min=MAX_MOVE)))

    def penalty(self, kind: Literal["trace", "squares"]) -> Tensor:
        """What pulls T from the identity, to be weighted: its trace, or the sum of its squares (weight decay).

        Of all networks and T that explain the given labels equally well, those with the true T have the smallest trace,
        where no flip is likelier than the right label: its authors' argument for the trace. Of rows of probabilities,
        the sum of squares is largest for the identity and smallest where all are equal.

        Raises:
            ValueError: another kind.
        """
        match kind:
            case "trace":
                return self.transition.diagonal().sum()
            case "squares":
                return self.transition.square().sum()
        raise ValueError(f"penalty {kind!r}: allowed: squares, trace")


class BottomUp(nn.Module):
    """A network with a noise layer behind it, which only training asks.

    The parameters are `network.…` and `noise_layer.transition`; the weights to hand on are those of `network`.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.noise_layer = NoiseLayer(num_classes)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(b, num_classes) logits of the clean label; in training also the given label's log-probabilities."""
        logits: Tensor = self.network(images)
        return (logits, self.noise_layer(logits)) if self.training else logits


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest rows, by squared distance, of numbers that are not negative and sum to 1. (n, k) -> (n, k).

    Source: Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient projections onto the l1-ball", 2008, figure 1.
    """
    falling = rows.sort(dim=1, descending=True).values
    excess = falling.cumsum(dim=1) - 1
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    positive = (falling * count > excess).sum(dim=1, keepdim=True)      # how many entries of a row stay above 0
    return (rows - excess.gather(1, positive - 1) / positive).clamp(min=0)
