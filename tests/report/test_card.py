"""What a model card says of how its model was trained: that of this model, not of another one of the run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from untrained_run import write_run

from twostage.data import schema
from twostage.report.card import card
from twostage.report.trained import open_trained

DATA = {"labels": "web", "train_split": "noisy_train", "clean_split": "by_hand"}
MINED = {"kept": 700, "images": 1000, "purity": 0.9, "clean_set": 50}
GIVEN = "trained on all labels as given (column web of the split noisy&#95;train)"
THESE = "all images and only these labels"
FIRST_NETWORK = "A first network was trained on all labels"
KEPT = "Kept: 700 of 1,000 labels, 90.00 % of them right."
FINE_TUNED = "fine-tuned on the clean set, the split by&#95;hand."
PAPER = "After Ding et al."
AGREED = "mining keeps labels on which the first network and the labels agree"


def made(folder: Path, model: str, settings: dict[str, dict[str, Any]], *, mined: bool = True) -> str:
    """The card of a model of a run with these settings."""
    run = write_run(folder / "run", models=(model,))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["mine"] = {"min_score": 0.9, "min_share": 0.1, "accept_score": 0.5}
    for section, values in {"data": DATA, **settings}.items():
        config[section] = {**config.get(section, {}), **values}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if mined:
        (run / "mine").mkdir()
        schema.write_json(run / "mine" / "done.json", {"inputs": {}, "results": MINED})
    schema.write_json(run / model / "done.json", {"inputs": {"weights": "ab" * 32}, "results": {}})
    text = card(run, open_trained(run, model), {}, "2")
    assert str(folder) not in text and "/home/somebody" not in text
    return re.sub(r"\s+", " ", text)


FROM_ANOTHER = {"run": {"two_stage": False, "finetune": True},
                "finetune": {"init": "/home/somebody/row07/train/model.safetensors"}}


@pytest.mark.parametrize(
    ("model", "settings", "said", "not_said"),
    [
        ("pretrain", {}, [f"It was {GIVEN}."], [KEPT, THESE, PAPER, AGREED]),
        ("baseline_forward", {}, [f"It was {GIVEN}."], [KEPT, THESE, PAPER, AGREED]),
        ("baseline_improved_baseline", {}, [GIVEN, "chosen by those of the held-out labels that stage 1 kept"],
         [THESE]),
        ("train", {"train": {"method": "temporal_ensembling"}},
         [FIRST_NETWORK, "probability is at least 0.9", "best 10.00 %", KEPT, PAPER, AGREED,
          f"that was trained on all labels as given was trained further with {THESE} (temporal&#95;ensembling)."],
         [FINE_TUNED]),
        ("train", {"train": {"init": "scratch"}}, [f"A new network was trained with {THESE} (pi&#95;model)."], []),
        ("train", {"mine": {"rule": "clean_filter"}},
         ["Classifiers, one for each class, were trained on the clean set, the split by&#95;hand, and scored",
          "gave it at least 0.5.", KEPT, "The 50 labels of the clean set were added.", THESE],
         [FIRST_NETWORK, AGREED]),
        ("baseline_pseudo_label", {}, [f"{THESE} (pseudo&#95;label).", KEPT], []),
        ("baseline_pseudo_label_clean", {},
         ["but of their labels only with those of the clean set, the split by&#95;hand (pseudo&#95;label)."],
         [KEPT, THESE]),
        ("baseline_label_noise", {},
         ["with a model of how labels go wrong", "the other half those of the clean set, the split by&#95;hand."],
         [KEPT, THESE]),
        ("finetune", {}, [FIRST_NETWORK, KEPT, THESE, f"It was then {FINE_TUNED}", PAPER], []),
        ("finetune", {"finetune": {"init": "pretrain"}},
         ["It began as this model: balanced cross-entropy (stage 1).", f"It was {GIVEN}.", FINE_TUNED],
         [KEPT, THESE, PAPER]),
        ("finetune", {"finetune": {"init": "baseline_forward"}},
         ["It began as this model: forward.", f"It was {GIVEN}.", FINE_TUNED], [KEPT, THESE, PAPER]),
    ],
)  # fmt: skip
def test_it_tells_how_this_model_was_trained(
    model: str, settings: dict[str, dict[str, Any]], said: list[str], not_said: list[str], tmp_path: Path
) -> None:
    text = made(tmp_path, model, settings)
    for sentence in said:
        assert sentence in text
    for sentence in not_said:
        assert sentence not in text


def test_a_network_of_another_run_is_named_and_not_guessed_at(tmp_path: Path) -> None:
    text = made(tmp_path, "finetune", FROM_ANOTHER, mined=False)
    assert f"a network from outside of this run (row07/train, SHA-256 {'ab' * 32})" in text and FINE_TUNED in text
    for sentence in (GIVEN, "No labels were mined", THESE, PAPER):
        assert sentence not in text
    elsewhere = {**FROM_ANOTHER, "finetune": {"init": "/home/somebody/w*ights.safetensors"}}
    assert "(w&#42;ights.safetensors, SHA-256" in made(tmp_path / "other", "finetune", elsewhere, mined=False)
