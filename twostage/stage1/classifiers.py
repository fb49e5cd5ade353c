"""Stage 1 with a clean set: trains one binary classifier per class, all of them one network (paper, section 3.1).

Which labels they accept is decided in clean_filter.py, by their scores of all samples, which `rank` computes.
"""

from __future__ import annotations

from pathlib import Path

from twostage.data.views import open_clean_set
from twostage.runtime.session import Session
from twostage.stage1.methods import PER_CLASS
from twostage.stage1.pretrain import Variant, pretrain


def train_classifiers(session: Session, folder: Path) -> None:
    """Trains on the clean split; leaves `model.safetensors`, whose outputs are the classifiers' logits, in `folder`.

    Validated is by the share of samples whose own classifier says the most of all.

    Raises:
        InputError: there is no clean split or it lacks a class, or as `pretrain`.
    """
    config = session.config.clean_filter
    clean_set = open_clean_set(session.views, session.config.data, session.config.run.rng_seed)
    variant = Variant(
        loss=PER_CLASS, positive_weight=config.positive_weight, clean_set=clean_set, section="clean_filter"
    )
    pretrain(session, folder, config, variant)
