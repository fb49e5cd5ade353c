"""The configuration's initial weights: in the network that training begins with, and in what identifies a stage."""

from __future__ import annotations

import dataclasses
import random
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twostage.config import AugmentConfig, Config, DataConfig, ModelConfig, RunConfig
from twostage.data.schema import InputError, file_digest
from twostage.models import build_model
from twostage.runtime.session import Session
from twostage.runtime.world import World


def session(tmp_path: Path, num_classes: int = 4, rank: int = 0, **model: Any) -> Session:
    config = Config(
        run=RunConfig(dir=tmp_path / "run", rng_seed=5),
        data=DataConfig(dataset=tmp_path),
        model=ModelConfig(name="resnet14", **model),
        augment=AugmentConfig(size=16),
    )
    views: Any = SimpleNamespace(num_classes=num_classes, digests={})
    nothing: Any = None
    world = World(rank=rank, size=rank + 1, device=torch.device("cpu"))
    return Session(config=config, accelerator=nothing, world=world, views=views, loader=nothing)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def save(path: Path, num_classes: int = 10, rng_seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(rng_seed)
    weights = copied(build_model("resnet14", num_classes=num_classes, in_channels=3, image_size=16))
    torch.save(weights, path)
    return weights


def test_training_begins_with_them_and_a_class_layer_that_follows_from_rng_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save(tmp_path / "a.pth")
    random = copied(session(tmp_path).new_model())
    own = session(tmp_path, weights=str(tmp_path / "a.pth"))
    torch.manual_seed(123)
    found = copied(own.new_model(initial=True))
    for name, value in found.items():
        assert torch.equal(value, (random if name.startswith("head.4.") else saved)[name]), name
    assert f"initial weights from {tmp_path / 'a.pth'}; new: head.4.weight, head.4.bias\n" in capsys.readouterr().out
    assert all(torch.equal(value, random[name]) for name, value in copied(own.new_model()).items())


def test_weights_for_the_same_classes_bring_their_class_layer_if_asked_to(tmp_path: Path) -> None:
    saved = save(tmp_path / "a.pth", num_classes=4)
    found = copied(session(tmp_path, weights=str(tmp_path / "a.pth"), class_layer="loaded").new_model(initial=True))
    assert all(torch.equal(value, saved[name]) for name, value in found.items())


def test_what_an_earlier_stage_trained_does_not_stay_in_memory(tmp_path: Path) -> None:
    own = dataclasses.replace(session(tmp_path), accelerator=Accelerator(cpu=True))

    def stage() -> weakref.ref[nn.Module]:
        model = own.new_model()
        network, optimizer = own.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), 4)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return weakref.ref(network)

    first, second = stage(), stage()
    assert first() is None and second() is not None


def test_behind_batchnorm_the_network_has_them_too(tmp_path: Path) -> None:
    saved = save(tmp_path / "a.pth")
    model = session(tmp_path, weights=str(tmp_path / "a.pth")).new_model(initial=True, output_norm=True)
    assert torch.equal(model.state_dict()["0.stem.0.weight"], saved["stem.0.weight"])


def test_a_stage_is_known_by_their_digest_and_not_by_where_they_lie(tmp_path: Path) -> None:
    save(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    a, b = (session(tmp_path, weights=str(tmp_path / name)) for name in ("a.pth", "b.pth"))
    expected = {"model.weights": file_digest(tmp_path / "a.pth"), "model.class_layer": "new"}
    assert a.initial_inputs() == b.initial_inputs() == expected
    assert a.inputs() == b.inputs() == session(tmp_path).inputs()
    assert session(tmp_path).initial_inputs() == {}
    save(tmp_path / "b.pth", rng_seed=2)
    assert session(tmp_path, weights=str(tmp_path / "b.pth")).initial_inputs() != expected


def test_stages_that_begin_with_other_weights_do_not_read_the_file(tmp_path: Path) -> None:
    own = session(tmp_path, weights=str(tmp_path / "gone.pth"))
    own.new_model()
    own.inputs()
    with pytest.raises(InputError, match=r"model\.weights: .*gone\.pth does not exist"):
        own.new_model(initial=True)


def test_what_does_not_fit_is_said_with_the_fields_name(tmp_path: Path) -> None:
    torch.save({"stem.0.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"model\.weights: .*a\.pth does not fit the network: it lacks stem\.0\.bias"):
        session(tmp_path, weights=str(tmp_path / "a.pth")).new_model(initial=True)
    with pytest.raises(InputError, match=r"model\.class_layer is loaded, but model\.weights names no weights"):
        session(tmp_path, class_layer="loaded").new_model(initial=True)


def test_dropout_and_noise_are_drawn_differently_on_every_rank_and_alike_in_every_run(tmp_path: Path) -> None:
    def drawn(rank: int, purpose: str = "pretrain") -> tuple[float, float, float]:
        session(tmp_path, rank=rank).seed_rank(purpose)
        return torch.rand(()).item(), random.random(), np.random.random()

    assert drawn(0) == drawn(0) and drawn(1) == drawn(1)
    for first, *others in zip(drawn(0), drawn(1), drawn(2), drawn(0, "train"), strict=True):
        assert first not in others and len(set(others)) == 3
