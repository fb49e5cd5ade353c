"""The numbers of the paper's Tables 1 to 4. Accuracies and shares in percent, as printed there; numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Published:
    """A figure of the paper."""

    value: float
    spread: float | None = None
    """what stands behind ±; the paper does not say of how many runs"""


NOISES: Final = ("p0", "sym0.2", "asym0.2", "asym0.6")
"""columns of Tables 1 and 3"""

TABLE1_ACCURACY: Final[dict[float, tuple[float, ...]]] = {      # CIFAR-10: labeled share -> accuracy by noise
    0.05: (87.9, 84.2, 85.5, 75.6),
    0.1: (88.0, 84.5, 85.6, 75.8),
    0.2: (87.9, 85.1, 85.5, 76.2),
    0.5: (88.1, 84.5, 85.6, 74.8),
}

TABLE2_SHARES: Final[dict[str, tuple[float, float, float]]] = {     # CIFAR-10, asym 0.6: correct, incorrect, no label
    "given": (70.0, 30.0, 0.0),
    "argmax": (54.1, 45.9, 0.0),
    "sampling": (68.1, 31.9, 0.0),
    "stage1": (16.8, 0.2, 81.0),                                # adds up to 98.0 in the paper
}

_CIFAR10: Final[dict[str, tuple[float, ...]]] = {
    "cross_entropy": (87.9, 82.4, 85.5, 56.2),
    "unhinged": (86.9, 84.1, 83.8, 52.1),
    "sigmoid": (76.0, 66.6, 71.8, 57.0),
    "savage": (80.1, 77.4, 76.0, 50.5),
    "bootstrap_soft": (87.7, 84.3, 84.6, 57.8),
    "bootstrap_hard": (87.3, 83.6, 84.7, 58.3),
    "backward": (87.7, 80.4, 83.8, 66.7),
    "forward": (87.4, 83.4, 87.0, 74.8),
    "improved_baseline": (87.8, 83.6, 85.2, 74.1),
    "ours": (88.0, 84.5, 85.6, 75.8),
}
_MNIST: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "cross_entropy": ((98.0, 0.1), (97.1, 0.1), (97.6, 0.2), (52.9, 0.6)),
    "unhinged": ((97.6, 0.0), (96.9, 0.1), (97.0, 0.1), (71.2, 1.0)),
    "sigmoid": ((97.2, 0.1), (93.1, 0.1), (96.7, 0.1), (71.4, 1.3)),
    "savage": ((97.3, 0.0), (96.9, 0.0), (97.0, 0.1), (51.3, 0.4)),
    "bootstrap_soft": ((97.9, 0.0), (96.9, 0.0), (97.5, 0.0), (53.0, 0.4)),
    "bootstrap_hard": ((97.9, 0.0), (96.8, 0.0), (97.4, 0.0), (55.0, 1.3)),
    "backward": ((97.9, 0.0), (96.9, 0.0), (96.7, 0.1), (67.4, 1.5)),
    "forward": ((97.9, 0.0), (96.9, 0.0), (97.7, 0.0), (64.9, 4.4)),
    "improved_baseline": ((98.0, 0.1), (97.1, 0.1), (97.7, 0.1), (76.7, 1.6)),
    "ours": ((98.2, 0.1), (97.7, 0.4), (97.8, 0.1), (83.4, 1.3)),
}
COPIED_CROSS_ENTROPY: Final[dict[str, tuple[Published, ...]]] = {
    "cifar10": tuple(Published(value) for value in (87.8, 83.7, 85.0, 57.6)),
    "mnist": (Published(97.9, 0.0), Published(96.9, 0.1), Published(97.5, 0.0), Published(53.0, 0.6)),
}
"""the first row of Table 3: cross-entropy as Patrini et al. report it; the paper has a row of its own besides"""
ROWS: Final = tuple(_MNIST)
"""rows of Table 3 that were computed by the paper or copied from Patrini et al., in our order"""

TABLE4: Final[dict[int, tuple[Published | None, Published | None]]] = {   # row -> reported, of its own runs
    1: (Published(73.04), None),
    2: (Published(76.22), None),
    3: (Published(78.24), None),
    4: (Published(68.94), Published(69.03)),
    5: (Published(69.13), None),
    6: (Published(69.84), None),
    7: (None, Published(77.34)),
    8: (None, Published(79.38)),
    9: (Published(72.63), None),
    10: (Published(75.19), Published(74.84)),
    11: (Published(80.38), None),
    12: (None, Published(80.44)),
    13: (None, Published(80.53)),
}


def table1(noise: str, share: float) -> Published | None:
    """Accuracy on CIFAR-10 when `share` of each class's labels are kept; None where the paper has no figure."""
    values = TABLE1_ACCURACY.get(share)
    column = _column(noise)
    return None if values is None or column is None else Published(values[column])


def table3(dataset: str, noise: str, row: str) -> Published | None:
    """Accuracy of a method; None where the paper has no figure."""
    column = _column(noise)
    if column is None:
        return None
    if dataset == "cifar10" and row in _CIFAR10:
        return Published(_CIFAR10[row][column])
    if dataset == "mnist" and row in _MNIST:
        return Published(*_MNIST[row][column])
    return None


def copied_cross_entropy(dataset: str, noise: str) -> Published | None:
    """Cross-entropy as Patrini et al. report it; None where they have no figure."""
    column = _column(noise)
    return None if column is None or dataset not in COPIED_CROSS_ENTROPY else COPIED_CROSS_ENTROPY[dataset][column]


def _column(noise: str) -> int | None:
    name = noise.removesuffix("-text")       # of the paper's two accounts of MNIST's noise, it reports one column
    return NOISES.index(name) if name in NOISES else None
