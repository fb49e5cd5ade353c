"""ResNet-18, ResNet-50 and AlexNet against torchvision's: its names and shapes, and outputs that its code gave.

`torchvision_<name>.txt` beside this file holds the names and shapes of torchvision 0.29's state dictionary.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from twostage.models import build_model
from twostage.models.resnet import BasicBlock, Bottleneck, ResNet

# Logits of torchvision 0.29 in training mode for the weights and the images below
TORCHVISION_LOGITS = {
    "alexnet": [
        [1.8555280092, -3.2147036627, 1.2102550028, 1.9028322602, -3.2680868037],
        [1.8555271166, -3.2147038410, 1.2102560654, 1.9028314258, -3.2680870711],
    ],
    "resnet18": [
        [-3.5428381216, -1.7016715741, 0.2229294328, 2.127803811, 3.9134145893],
        [-3.4360978311, -1.6207787223, 0.2726020218, 2.1429569324, 3.8930417877],
    ],
    "resnet50": [
        [-14.8390702853, -1.7366519637, 13.0278834965, 15.0646431922, 2.4172264789],
        [-14.2168290092, -2.3689342086, 11.7586905302, 14.3982861958, 3.0046024424],
    ],
}
both = pytest.mark.parametrize("name", ["resnet18", "resnet50"])
all_three = pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet50"])


def build(name: str, num_classes: int = 1000, dropout: float = 0.0) -> nn.Module:
    return build_model(name, num_classes=num_classes, in_channels=3, image_size=224, dropout=dropout)


@pytest.mark.parametrize(
    ("name", "total", "tensors"),
    [("alexnet", 61_100_840, 16), ("resnet18", 11_689_512, 62), ("resnet50", 25_557_032, 161)],
)
def test_has_the_known_number_of_parameters(name: str, total: int, tensors: int) -> None:
    model = build(name)
    assert sum(p.numel() for p in model.parameters()) == total
    assert len(list(model.parameters())) == tensors


@all_three
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_state_dictionary_has_torchvisions_names_and_shapes_in_its_order(name: str, dropout: float) -> None:
    state = build(name, dropout=dropout).state_dict()
    found = [f"{key} {'x'.join(map(str, value.shape)) or 'scalar'}" for key, value in state.items()]
    assert found == (Path(__file__).parent / f"torchvision_{name}.txt").read_text().splitlines()


def fill(model: nn.Module) -> None:
    """Weights that do not depend on anybody's random numbers."""
    for number, (name, value) in enumerate(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + number).reshape(value.shape)
        if value.ndim > 1:
            value.copy_(wave * (4 / value[0].numel()) ** 0.5)
        elif name.endswith("weight"):
            value.copy_(0.7 + 0.3 * wave)
        else:
            value.copy_(0.1 * wave)


@all_three
def test_same_weights_give_torchvisions_logits(name: str) -> None:
    model = build(name, num_classes=5).double().train()
    fill(model)
    images = torch.cos(torch.arange(2 * 3 * 64 * 64, dtype=torch.float64) * 0.37).reshape(2, 3, 64, 64)
    expected = torch.tensor(TORCHVISION_LOGITS[name], dtype=torch.float64)
    torch.testing.assert_close(model(images), expected, rtol=1e-8, atol=1e-8)


def test_alexnet_drops_out_before_both_hidden_layers() -> None:
    model = build("alexnet", num_classes=5, dropout=0.3)
    found = [(key, module.p) for key, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert found == [("classifier.0", 0.3), ("classifier.3", 0.3)]


@both
def test_drops_out_within_every_block_before_its_last_convolution(name: str) -> None:
    model = build(name, num_classes=5, dropout=0.3)
    order: list[str] = []
    for key, module in model.named_modules():
        if key.startswith("layer") and isinstance(module, nn.Conv2d | nn.Dropout) and "downsample" not in key:
            module.register_forward_hook(lambda module, *_: order.append(type(module).__name__))
    model(torch.randn(2, 3, 64, 64))
    block = ["Conv2d", "Dropout", "Conv2d"] if name == "resnet18" else ["Conv2d", "Conv2d", "Dropout", "Conv2d"]
    assert order == block * (8 if name == "resnet18" else 16)
    assert all(module.p == 0.3 for module in model.modules() if isinstance(module, nn.Dropout))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_blocks_begin_as_the_identity_only_if_asked_to(block: type[BasicBlock] | type[Bottleneck]) -> None:
    for asked in (False, True):
        model = ResNet(block, (1, 1, 1, 1), num_classes=5, zero_init_residual=asked)
        last = "bn2.weight" if block is BasicBlock else "bn3.weight"
        for key, value in model.named_parameters():
            if ".bn" in key and key.endswith("weight"):
                assert (value == (0 if asked and key.endswith(last) else 1)).all()
