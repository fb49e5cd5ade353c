"""What every network has to do, and what build_model says when it is asked for something else."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from twostage.models import BUILT_IN, build_model
from twostage.models.layers import GaussianNoise

built_in = pytest.mark.parametrize("name", BUILT_IN)


def side(name: str) -> int:
    """Of the images, in pixels."""
    return 64 if name == "alexnet" else 32


def small(name: str, dropout: float = 0.0, input_noise: float = 0.0, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        name, num_classes=7, in_channels=in_channels, image_size=side(name), dropout=dropout, input_noise=input_noise
    )


def some_images(name: str, in_channels: int = 3) -> torch.Tensor:
    return torch.randn(4, in_channels, side(name), side(name), generator=torch.Generator().manual_seed(1))


@built_in
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_have_one_column_per_class_and_every_parameter_gets_gradient(name: str, in_channels: int) -> None:
    model = small(name, in_channels=in_channels)
    logits = model(some_images(name, in_channels))
    assert logits.shape == (4, 7)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert [key for key, grad in gradients.items() if grad is None or not torch.isfinite(grad).all()] == []
    assert [key for key, grad in gradients.items() if grad is not None and grad.ndim > 1 and not grad.any()] == []


@built_in
def test_same_state_of_torch_gives_the_same_weights(name: str) -> None:
    a, b = small(name).state_dict(), small(name).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


@built_in
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model = small(name).eval()
    expected = model(some_images(name))
    found = model.to(memory_format=torch.channels_last)(some_images(name).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@built_in
def test_bfloat16_autocast_comes_close_and_leaves_weights_in_float32(name: str) -> None:
    model = small(name, dropout=0.1, input_noise=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.train()(some_images(name)).float().sum().backward()
        half = model.eval()(some_images(name))
    full = model(some_images(name))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1 * float(full.detach().abs().max()))
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())


@built_in
@pytest.mark.parametrize("perturbation", ["dropout", "input_noise"])
def test_perturbations_act_in_training_and_not_in_evaluation(name: str, perturbation: str) -> None:
    model = small(name, **{perturbation: 0.3})
    plain = small(name)
    images = some_images(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0           # so that evaluation is not changed by the training passes before it
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), plain.eval()(images))


@built_in
def test_without_perturbation_training_draws_no_random_number(name: str) -> None:
    model = small(name).train()
    before = torch.get_rng_state()
    model(some_images(name))
    assert torch.equal(torch.get_rng_state(), before)


def test_input_noise_has_the_given_standard_deviation_and_is_drawn_anew_for_every_sample() -> None:
    layer = GaussianNoise(0.15)
    noise = layer(torch.full((2, 100, 100), 5.0)) - 5
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(0.15, rel=0.02)
    assert not torch.equal(noise[0], noise[1])
    images = torch.ones(3)
    assert layer.eval()(images) is images


FACTORIES = """
import torch
from torch import nn

def plain(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def whole(num_classes, in_channels, image_size, dropout=0.0, input_noise=0.0):
    net = nn.Flatten()
    net.got = (num_classes, in_channels, image_size, dropout, input_noise)
    return net

def wide(*, weights=None, **kwargs):
    net = nn.Flatten()
    net.got = kwargs
    return net

class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.got = (num_classes, image_size)

def classes(n): return nn.Flatten()
def more(num_classes, depth): return nn.Flatten()
def number(num_classes): return num_classes
a_value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's, importable as its name."""
    package = tmp_path / "own_networks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(FACTORIES)
    (package / "needs.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return "own_networks.nets"


def build(name: str, dropout: float = 0.0, input_noise: float = 0.0) -> nn.Module:
    return build_model(name, num_classes=7, in_channels=1, image_size=28, dropout=dropout, input_noise=input_noise)


def test_a_factory_gets_what_its_signature_names(own: str) -> None:
    assert build(f"{own}:plain")(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert build(f"{own}:whole", dropout=0.5, input_noise=0.1).got == (7, 1, 28, 0.5, 0.1)
    assert build(f"{own}:Net").got == (7, 28)
    assert build(f"{own}:wide").got == {"num_classes": 7}


@pytest.mark.parametrize("perturbation", ["dropout", "input_noise"])
@pytest.mark.parametrize("factory", ["plain", "wide"])
def test_a_perturbation_that_a_factory_does_not_take_is_refused(own: str, factory: str, perturbation: str) -> None:
    with pytest.raises(ValueError, match=f"{own}:{factory} takes no '{perturbation}', but {perturbation} is 0.2"):
        build(f"{own}:{factory}", **{perturbation: 0.2})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("plian", "has no 'plian'; did you mean 'plain'"),
        ("classes", "own_networks.nets:classes cannot be called with num_classes=.*must take num_classes="),
        ("more", "cannot be called with num_classes=.*'depth'"),
        ("number", "own_networks.nets:number returned int.*torch.nn.Module"),
        ("a_value", "a_value is int, not a class or function"),
        ("", "write package.module:factory"),
    ],
)
def test_a_factory_that_does_not_fit_is_named_with_the_remedy(own: str, factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(f"{own}:{factory}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_networsk.nets:plain", "no module 'own_networsk'.*PYTHONPATH"),
        ("own_networks.nest:plain", "no module 'own_networks.nest'.*PYTHONPATH"),
        ("own_networks.needs:plain", "own_networks.needs needs 'a_package_that_is_not_there', which is not installed"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_remedy(own: str, path: str, message: str) -> None:
    with pytest.raises(ImportError, match=message):
        build(path)


def test_alexnet_says_which_images_are_too_small_for_it() -> None:
    with pytest.raises(ValueError, match="images of 62 pixels are too small for alexnet: at least 63"):
        build_model("alexnet", num_classes=7, in_channels=3, image_size=62)
    model = build_model("alexnet", num_classes=7, in_channels=3, image_size=63)
    assert model(torch.zeros(1, 3, 63, 63)).shape == (1, 7)


@pytest.mark.parametrize("name", ["resnet5O", "ResNet50", "resnet-50"])
def test_an_unknown_name_is_told_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match=f"no network '{name}'; did you mean 'resnet50'.*package.module:factory"):
        build(name)


@pytest.mark.parametrize(
    ("perturbation", "value"),
    [("dropout", 1.0), ("dropout", -0.1), ("dropout", math.nan), ("input_noise", -1.0), ("input_noise", math.nan)],
)
def test_a_perturbation_out_of_range_is_refused(perturbation: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{perturbation} {value}"):
        build("mlp", **{perturbation: value})
