"""The models that a run may hold, by folder: those of the two stages, and as baselines other rows of Tables 3 and 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

BaselineName = Literal[
    "cross_entropy",
    "balanced_cross_entropy",
    "improved_baseline",
    "unhinged",
    "sigmoid",
    "savage",
    "bootstrap_soft",
    "bootstrap_hard",
    "backward",
    "forward",
    "pi_model",
    "temporal_ensembling",
    "pseudo_label",
    "pseudo_label_clean",
    "bottom_up",
    "label_noise",
]


@dataclass(frozen=True)
class Baseline:
    """A row that is trained for comparison."""

    title: str
    loss: str = "cross_entropy"
    """name in stage1.methods"""
    balance: bool = False
    refined_val: bool = False
    """validates on the held-out samples whose labels stage 1 kept"""
    stage2: Literal["pi_model", "temporal_ensembling", "pseudo_label"] | None = None
    """trained by stage 2 with this method"""
    noise_model: Literal["bottom_up", "label_noise"] | None = None
    """trained with this model of how labels go wrong"""


BASELINES: Final[dict[BaselineName, Baseline]] = {
    "cross_entropy": Baseline("cross-entropy"),
    "balanced_cross_entropy": Baseline("balanced cross-entropy", balance=True),
    "unhinged": Baseline("unhinged (BN)", "unhinged"),
    "sigmoid": Baseline("sigmoid (BN)", "sigmoid"),
    "savage": Baseline("savage", "savage"),
    "bootstrap_soft": Baseline("bootstrap soft", "bootstrap_soft"),
    "bootstrap_hard": Baseline("bootstrap hard", "bootstrap_hard"),
    "backward": Baseline("backward", "backward"),
    "forward": Baseline("forward", "forward"),
    "improved_baseline": Baseline("improved baseline", balance=True, refined_val=True),
    "pi_model": Baseline("two-stage, Π-model", stage2="pi_model"),
    "temporal_ensembling": Baseline("two-stage, temporal ensembling", stage2="temporal_ensembling"),
    "pseudo_label": Baseline("two-stage, pseudo-labels", stage2="pseudo_label"),
}

OWN_WEIGHTS: Final[dict[str, tuple[float, Literal["sum", "mean"]]]] = {
    "pi_model": (100.0, "mean"),
    "temporal_ensembling": (30.0, "mean"),
    "pseudo_label": (3.0, "mean"),
}
"""consistency_weight and reduction of a second stage whose method is not train.method: its authors', on CIFAR-10 (Laine
& Aila, arXiv 1610.02242; the mean is over classes) and on MNIST (Lee, 2013; there is nothing to reduce)"""

WITH_CLEAN_SET: Final[dict[BaselineName, Baseline]] = {
    "pseudo_label_clean": Baseline("pseudo-labels, only the clean set labeled", stage2="pseudo_label"),
    "bottom_up": Baseline("bottom-up noise layer", noise_model="bottom_up"),
    "label_noise": Baseline("label-noise model", noise_model="label_noise"),
}
"""rows of Table 4 that need a clean set"""
ALL_BASELINES: Final = BASELINES | WITH_CLEAN_SET


BEST_FIRST: Final = ("finetune", "train", "pretrain")
"""which model of a run is meant where none is named: the first of these that is there"""


def folder_of(baseline: str) -> str:
    """Name of a baseline's folder in the run folder."""
    return f"baseline_{baseline}"


BY_FOLDER: Final = {folder_of(name): row for name, row in ALL_BASELINES.items()}
"""the baselines by their folders in the run folder"""
CLEAN_FOLDERS: Final = ("finetune", *map(folder_of, WITH_CLEAN_SET))
"""of models that are trained on the clean set"""


def titles(balance: bool = True) -> dict[str, str]:
    """What the models are called, by folder, in the order of a table.

    Args:
        balance: pretrain.balance, whether stage 1's own network is class-balanced.
    """
    rows = {folder_of(name): row.title for name, row in ALL_BASELINES.items()}
    return rows | {
        "pretrain": f"{'balanced ' if balance else ''}cross-entropy (stage 1)",
        "train": "two-stage",
        "finetune": "fine-tuned on the clean set",
    }
