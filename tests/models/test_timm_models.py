"""timm's networks by name, by a stand-in for the library; and by the library itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from twostage.models import build_model
from twostage.models.timm_models import timm_weights

asked: list[tuple[str, dict[str, Any]]] = []


def fake_timm() -> ModuleType:
    """What of timm is used, with two networks: one for any size, one for a fixed one."""
    names = {"plainnet": False, "fixednet": True}

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        if options.get("drop_rate", 0) > 0.9:
            raise RuntimeError("some reason\nof the library's own")
        net = nn.Sequential(nn.Flatten(), nn.LazyLinear(options.get("num_classes", 1000)))
        if options["pretrained"]:
            net(torch.zeros(1, 3))
        return net

    timm = ModuleType("timm")
    configs = {name: SimpleNamespace(fixed_input_size=fixed) for name, fixed in names.items()}
    vars(timm).update(
        create_model=create_model,
        is_model=lambda name: name in {*names, "bare"},
        list_models=lambda: [*names, "bare"],
        get_pretrained_cfg=configs.get,
    )
    return timm


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    monkeypatch.setitem(sys.modules, "timm", fake_timm())


def build(name: str, **options: Any) -> nn.Module:
    return build_model(name, num_classes=7, in_channels=1, image_size=96, **options)


@pytest.mark.usefixtures("timm")
def test_a_network_is_made_for_these_classes_channels_and_size() -> None:
    assert build("timm:plainnet")(torch.zeros(2, 1, 96, 96)).shape == (2, 7)
    build("timm:fixednet", dropout=0.2)
    assert asked == [
        ("plainnet", {"pretrained": False, "num_classes": 7, "in_chans": 1}),
        ("fixednet", {"pretrained": False, "num_classes": 7, "in_chans": 1, "drop_rate": 0.2, "img_size": 96}),
    ]


@pytest.mark.usefixtures("timm")
def test_weights_come_with_timms_own_class_layer() -> None:
    assert timm_weights("timm:plainnet")["1.weight"].shape == (1000, 3)
    assert asked == [("plainnet", {"pretrained": True})]


@pytest.mark.usefixtures("timm")
def test_what_timm_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="timm has no network 'plannet'; did you mean 'plainnet'"):
        build("timm:plannet")
    with pytest.raises(ValueError, match=r"input_noise is 0\.1: set it to 0"):
        build("timm:plainnet", input_noise=0.1)
    with pytest.raises(ValueError, match=r"cannot make 'plainnet' with .*drop_rate=0\.95: some reason of the library"):
        build("timm:plainnet", dropout=0.95)
    with pytest.raises(ValueError, match="no pretrained weights for 'bare'"):
        timm_weights("timm:bare")


def test_without_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="network 'timm:resnet50': 'timm' is not installed: `pip install timm`"):
        build("timm:resnet50")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_with_timm_its_networks_train() -> None:
    logits = build("timm:resnet18")(torch.zeros(2, 1, 96, 96))
    logits.sum().backward()
    assert logits.shape == (2, 7)
    with pytest.raises(ValueError, match="no network 'resnet188'; did you mean 'resnet18'"):
        build("timm:resnet188")
    assert build("timm:vit_tiny_patch16_224")(torch.zeros(1, 1, 96, 96)).shape == (1, 7)
