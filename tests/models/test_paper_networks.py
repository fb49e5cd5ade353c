"""The paper's MLP and ResNet-14, against an independent count and against their definition written out by functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from twostage.models import build_model
from twostage.models.resnet14 import ResNet14, Unit


def num_trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_mlp_has_118282_parameters() -> None:
    assert num_trainable(build_model("mlp", num_classes=10, in_channels=1, image_size=28)) == 118_282


def test_mlp_is_three_layers_with_relu_between() -> None:
    model = build_model("mlp", num_classes=10, in_channels=1, image_size=28)
    weights = [p.detach() for p in model.parameters()]
    assert [tuple(w.shape) for w in weights] == [(128, 784), (128,), (128, 128), (128,), (10, 128), (10,)]
    x = images = torch.randn(3, 1, 28, 28)
    x = x.reshape(3, 784)
    for w, b in zip(weights[::2], weights[1::2], strict=True):
        x = torch.relu(x) if w.shape[1] != 784 else x
        x = x @ w.T + b
    torch.testing.assert_close(model(images), x)


def test_mlp_drops_out_after_each_hidden_layer() -> None:
    model = build_model("mlp", num_classes=10, in_channels=1, image_size=28, dropout=0.2)
    inputs: list[Tensor] = []
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda _module, args, output: inputs.append(output))
    model.train()(torch.randn(500, 1, 28, 28))
    assert [tuple(x.shape) for x in inputs] == [(500, 128), (500, 128)]


def test_resnet14_has_175626_parameters_and_14_layers() -> None:
    model = build_model("resnet14", num_classes=10, in_channels=3, image_size=32)
    assert num_trainable(model) == 175_626
    main_path = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(main_path) == 14
    assert [m.out_channels for m in main_path[:-1]] == [16] * 5 + [32] * 4 + [64] * 4


def test_resnet14_is_its_definition() -> None:
    """Pre-activation, in evaluation mode with BatchNorm's statistics at 0 and 1; input sides 32 and 47."""
    model = ResNet14(num_classes=10).eval()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))

    def bn_relu(x: Tensor) -> Tensor:
        return torch.relu(x / math.sqrt(1 + 1e-5))

    def conv(x: Tensor, stride: int = 1) -> Tensor:
        layer = remaining.pop(0)
        return functional.conv2d(x, layer.weight, layer.bias, stride=stride, padding=layer.weight.shape[-1] // 2)

    for side in (32, 47):
        remaining = list(convolutions)
        images = torch.randn(2, 3, side, side)
        x = bn_relu(conv(images))
        for unit in range(6):
            stride = 2 if unit in (2, 4) else 1
            y = conv(bn_relu(x) if unit else x, stride)
            y = conv(bn_relu(y))
            x = (conv(x, stride) if stride == 2 else x) + y
        expected = linear(bn_relu(x).mean(dim=(2, 3)))
        assert not remaining
        torch.testing.assert_close(model(images), expected)


def test_resnet14_drops_out_between_the_two_convolutions_of_each_unit() -> None:
    model = ResNet14(num_classes=10, dropout=0.4)
    order: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Dropout) and "shortcut" not in name:
            module.register_forward_hook(lambda module, *_: order.append(type(module).__name__))
    model(torch.randn(2, 3, 32, 32))
    assert order == ["Conv2d"] + ["Conv2d", "Dropout", "Conv2d"] * 6
    assert all(unit.dropout.p == 0.4 for unit in model.units if isinstance(unit, Unit))


def test_weights_are_he_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    for name in ("mlp", "resnet14"):
        for layer in build_model(name, num_classes=10, in_channels=1, image_size=28).modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                expected = math.sqrt(2 / layer.weight[0].numel())
                spread = 5 / math.sqrt(2 * layer.weight.numel())
                assert abs(layer.weight.std().item() / expected - 1) < spread
                assert layer.bias is not None
                assert (layer.bias == 0).all()
