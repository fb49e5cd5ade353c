"""Which slots of a half clean, half noisy batch teach what, in rows 2 and 3 of Table 4."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twostage.config import NoiseModelConfig
from twostage.data.schema import InputError
from twostage.data.views import CleanSet
from twostage.models.label_noise import confusing_matrix, label_noise_losses, supervised_losses
from twostage.stage1.noise_models import BottomUpTraining, LabelNoiseTraining

CLEAN_SET = CleanSet(train=np.arange(6), val=np.arange(0), labels=np.array([0, 0, 1, 1, 2, 3]))
GIVEN = np.array([0, 2, 1, -1, 0, 3])
T = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.1, 0.8, 0.1], [0.25, 0.25, 0.25, 0.25]])


def session(given: Any = GIVEN, clean: Any = CLEAN_SET.labels) -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(
        new_model=lambda initial, num_outputs=None: nn.Linear(5, num_outputs or 4),
        views=SimpleNamespace(num_classes=4, labels=given, clean=clean),
        world=SimpleNamespace(device=torch.device("cpu")),
        config=SimpleNamespace(data=SimpleNamespace(labels="l", clean_labels="c", clean_split="clean_train")),
        table=torch.as_tensor,
    )


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, clean and given labels of 8 slots, every other one clean; one clean slot has no given label."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(4, (8,), generator=generator)
    given = torch.randint(4, (8,), generator=generator)
    clean[1::2], given[2] = -1, -1
    return torch.randn(8, 5, generator=generator), clean, given


def test_only_noisy_slots_go_through_the_noise_layer() -> None:
    images, clean, given = batch()
    noise = BottomUpTraining(session(), NoiseModelConfig(penalty_weight=0.3))
    noise.model.noise_layer.transition.data = T.clone()
    noise.start_epoch(1)
    outputs = noise.model.train()(images)
    of_clean, of_noisy = noise.losses(outputs, clean, given)
    probs = noise.model.network(images).softmax(dim=1)
    right = -probs[torch.arange(0, 8, 2), clean[::2]].log().mean()
    wrong = -(probs @ T)[torch.arange(1, 8, 2), given[1::2]].log().mean()
    torch.testing.assert_close(of_clean, right)
    torch.testing.assert_close(of_noisy, wrong + 0.3 * T.trace())


def test_the_noise_layer_is_held_for_the_first_epochs() -> None:
    images, clean, given = batch()
    noise = BottomUpTraining(session(), NoiseModelConfig(held_epochs=2, penalty_weight=5.0))
    optimizer = torch.optim.Adam(noise.model.parameters(), lr=0.01)
    moved = []
    for epoch in range(4):
        noise.start_epoch(epoch)
        optimizer.zero_grad()
        sum(noise.losses(noise.model(images), clean, given)).backward()     # type: ignore[union-attr]
        if epoch < 2:       # or Adam would remember it, and throw the layer when it is free
            assert not noise.model.noise_layer.transition.grad.any()        # type: ignore[union-attr]
        optimizer.step()
        noise.settle()
        moved.append(not torch.equal(noise.model.noise_layer.transition.detach(), torch.eye(4)))
        torch.testing.assert_close(noise.model.noise_layer.transition.sum(dim=1), torch.ones(4))
    assert moved == [False, False, True, True]
    assert all(name.startswith(noise.handed_on) for name in noise.model.state_dict() if "transition" not in name)


def test_clean_slots_teach_both_networks_and_noisy_ones_by_em() -> None:
    images, clean, given = batch()
    noise = LabelNoiseTraining(session(), CLEAN_SET)
    classes, types = noise.model.train()(images)
    of_clean, of_noisy = noise.losses((classes, types), clean, given)
    confusing = confusing_matrix(torch.tensor(CLEAN_SET.labels), torch.tensor(GIVEN), 4).float()
    known = supervised_losses(classes[::2], types[::2], clean[::2], given[::2], confusing)
    expected = label_noise_losses(classes[1::2], types[1::2], given[1::2], confusing)
    torch.testing.assert_close(of_clean, sum(known))
    torch.testing.assert_close(of_noisy, sum(expected))
    assert types.shape == (8, 3) and known[1] > 0
    assert {name.split(".")[0] + "." for name in noise.model.state_dict()} == {noise.handed_on, "types."}


@pytest.mark.parametrize(
    "given_session",
    [session(clean=None), session(given=CLEAN_SET.labels), session(given=np.full(6, -1))],
    ids=["one column", "all right", "no given label"],
)
def test_confusions_need_images_with_a_right_and_a_wrong_label(given_session: Any) -> None:
    with pytest.raises(InputError, match=r"no sample of 'clean_train' has a right and a wrong label.*data\.labels"):
        LabelNoiseTraining(given_session, CLEAN_SET)
