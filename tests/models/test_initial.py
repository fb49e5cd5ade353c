"""Taking over weights that others trained: what is copied, what stays, and what is said when they do not fit."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twostage.models import BUILT_IN, build_model
from twostage.models.initial import class_layer, named_tensors, take_over

CLASS_LAYERS = {
    "alexnet": "classifier.6",
    "mlp": "fc",
    "resnet14": "head.4",
    "resnet18": "fc",
    "resnet50": "fc",
}


def build(name: str, num_classes: int = 7, rng_seed: int = 0, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(rng_seed)
    return build_model(name, num_classes=num_classes, in_channels=in_channels, image_size=64)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def saved() -> dict[str, Tensor]:
    """Of a ResNet-18 for 10 classes, with BatchNorm statistics that are not the initial ones."""
    model = build("resnet18", num_classes=10, rng_seed=1)
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.add_(0.25)
        if name.endswith(("running_var", "num_batches_tracked")):
            value.add_(3)
    return copied(model)


@pytest.mark.parametrize("name", BUILT_IN)
def test_everything_but_the_class_layer_is_taken_over(name: str) -> None:
    source = copied(build(name, num_classes=10, rng_seed=1))
    model = build(name)
    fresh = copied(model)
    kept = take_over(model, source, num_classes=7, where="a.pth")
    assert kept == [f"{CLASS_LAYERS[name]}.weight", f"{CLASS_LAYERS[name]}.bias"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if key in kept else source[key]), key


def test_statistics_of_batchnorm_come_too(saved: dict[str, Tensor]) -> None:
    model = build("resnet18")
    take_over(model, saved, num_classes=7, where="a.pth")
    assert torch.equal(model.get_buffer("layer3.1.bn2.running_mean"), saved["layer3.1.bn2.running_mean"])
    assert int(model.get_buffer("bn1.num_batches_tracked")) == 3


def test_the_class_layer_is_new_even_where_the_number_of_classes_is_the_same(saved: dict[str, Tensor]) -> None:
    model = build("resnet18", num_classes=10)
    fresh = copied(model)
    take_over(model, saved, num_classes=10, where="a.pth")
    assert torch.equal(model.get_parameter("fc.weight"), fresh["fc.weight"])
    assert take_over(model, saved, num_classes=10, where="a.pth", keep_class_layer=True) == []
    assert torch.equal(model.get_parameter("fc.weight"), saved["fc.weight"])


def test_a_file_without_class_layer_or_without_batchnorms_counters_will_do(saved: dict[str, Tensor]) -> None:
    old = {key: value for key, value in saved.items() if not key.startswith("fc.") and "num_batches" not in key}
    model = build("resnet18")
    kept = take_over(model, old, num_classes=7, where="a.pth")
    assert {key for key in kept if "num_batches" not in key} == {"fc.weight", "fc.bias"}
    assert len(kept) == 2 + 20
    assert torch.equal(model.get_parameter("layer4.0.conv1.weight"), saved["layer4.0.conv1.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_becomes_the_networks(saved: dict[str, Tensor], dtype: torch.dtype) -> None:
    model = build("resnet18")
    other = {key: value.to(dtype) if value.is_floating_point() else value for key, value in saved.items()}
    take_over(model, other, num_classes=7, where="a.pth")
    assert model.get_parameter("conv1.weight").dtype == torch.float32
    torch.testing.assert_close(model.get_parameter("conv1.weight").data, other["conv1.weight"].float())


def without(saved: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {key: value for key, value in saved.items() if key not in names}


def test_what_does_not_fit_is_named_and_nothing_is_changed(saved: dict[str, Tensor]) -> None:
    cases: list[tuple[dict[str, Tensor], str]] = [
        (without(saved, "layer1.0.conv1.weight"), "a.pth does not fit.*it lacks layer1.0.conv1.weight"),
        (
            {("first" if key == "conv1.weight" else key): value for key, value in saved.items()},
            "it lacks conv1.weight.*the network lacks first",
        ),
        (
            {key.replace("layer1.0.conv1", "layer1.0.conv_1"): value for key, value in saved.items()},
            r"it lacks layer1.0.conv1.weight \(nearest there: layer1.0.conv_1.weight\).*"
            r"the network lacks layer1.0.conv_1.weight",
        ),
        (saved | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, "conv1.weight is 64x1x7x7 floats there, 64x3x7x7 float"),
        (saved | {"bn1.weight": torch.zeros(64, dtype=torch.int64)}, "bn1.weight is 64 int64 there, 64 floats here"),
        (saved | {"bn1.weight": torch.full((64,), torch.nan)}, "bn1.weight holds values that are not finite"),
        (saved | {"layer4.1.bn2.bias": torch.full((512,), torch.inf)}, "layer4.1.bn2.bias holds values"),
    ]
    for wrong, message in cases:
        model = build("resnet18")
        before = copied(model)
        with pytest.raises(ValueError, match=message):
            take_over(model, wrong, num_classes=7, where="a.pth")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), message


def test_another_architecture_is_told_by_a_few_names_and_a_count(saved: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"a\.pth does not fit.*and \d+ more differences\. Are they wei") as error:
        take_over(build("resnet50"), saved, num_classes=7, where="a.pth")
    assert len(str(error.value)) < 1200
    with pytest.raises(ValueError, match=r"conv1\.weight is 64x3x7x7 floats there, 64x1x7x7 floats here.*channels"):
        take_over(build("resnet18", in_channels=1), saved, num_classes=7, where="a.pth")


def test_a_kept_class_layer_must_fit(saved: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"fc\.weight is 10x512 floats there, 7x512 floats here"):
        take_over(build("resnet18"), saved, num_classes=7, where="a.pth", keep_class_layer=True)


def test_the_class_layer_is_the_last_one_with_an_output_per_class() -> None:
    hidden_of_the_same_width = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    assert class_layer(hidden_of_the_same_width, 3) == "2"
    assert class_layer(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Flatten()), 5) == "1"
    with pytest.raises(ValueError, match="no linear layer or convolution with 6 outputs"):
        class_layer(hidden_of_the_same_width, 6)


A = torch.zeros(2)


@pytest.mark.parametrize(
    "content",
    [
        {"fc.weight": A},
        OrderedDict({"fc.weight": A}),
        {"state_dict": {"fc.weight": A}, "epoch": 3, "optimizer": {"state": {}}},
        {"model": {"fc.weight": A}, "steps": torch.tensor(5)},
        {"model_state_dict": {"fc.weight": A}},
        {"module.fc.weight": A},
        {"state_dict": {"module._orig_mod.fc.weight": A}},
        {"_orig_mod.module.fc.weight": A},
    ],
)
def test_weights_are_found_in_checkpoints_and_behind_wrappers(content: dict[str, Any]) -> None:
    assert list(named_tensors(content, "a.pth")) == ["fc.weight"]


def test_a_prefix_that_not_all_names_have_belongs_to_them() -> None:
    assert list(named_tensors({"module.a": A, "b": A}, "a.pth")) == ["module.a", "b"]
    assert list(named_tensors({"module.module.a": A}, "a.pth")) == ["module.a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "a.pth holds nothing, not weights by name: save `model.state_dict"),
        ([A], "a.pth holds list, not weights by name"),
        (A, "a.pth holds Tensor, not weights by name"),
        ({"weights": {"fc.weight": A}}, "'weights' is dict, not a tensor: save .* state_dict, model_state_dict, model"),
        ({"state_dict": {"fc.weight": 3}}, "'fc.weight' is int, not a tensor"),
        ({0: A}, "0 is Tensor, not a tensor|0"),
    ],
)
def test_something_else_than_weights_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_tensors(content, "a.pth")
