"""ResNet-18 and ResNet-50 (He et al., 2016) with torchvision's names and shapes: its weight files load unchanged.

The stride of a bottleneck sits in its 3x3 convolution ("v1.5"), not in the first 1x1 as in that work.
"""

from __future__ import annotations

from torch import Tensor, nn

from twostage.models.layers import GaussianNoise

WIDTHS = (64, 128, 256, 512)
"""of the four stages, before a block's expansion"""


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _downsample(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut's projection, where shapes differ."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(_conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with dropout between them."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.dropout(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        total: Tensor = self.relu(y + shortcut)
        return total


class Bottleneck(nn.Module):
    """1x1, 3x3 (which holds the stride) and 1x1 convolution, with dropout before the last."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        channels = width * self.expansion
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.dropout(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        total: Tensor = self.relu(y + shortcut)
        return total


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, global pooling, linear layer.

    Args:
        blocks: number of blocks in each stage.
        zero_init_residual: begin with a scale of 0 in the last BatchNorm of every block, so that each block begins as
            the identity. Off, as in torchvision.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_channels: int = 3,
        dropout: float = 0.0,
        input_noise: float = 0.0,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.noise = GaussianNoise(input_noise)
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = [WIDTHS[0], *(width * block.expansion for width in WIDTHS)]

        def stage(number: int) -> nn.Sequential:
            width, out = WIDTHS[number], channels[number + 1]
            first = block(channels[number], width, 1 if number == 0 else 2, dropout)
            return nn.Sequential(first, *(block(out, width, 1, dropout) for _ in range(blocks[number] - 1)))

        self.layer1, self.layer2, self.layer3, self.layer4 = (stage(number) for number in range(4))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[-1], num_classes)
        self._init(zero_init_residual)

    def _init(self, zero_init_residual: bool) -> None:
        """Convolutions by He with fan-out; the linear layer keeps torch's own. As in torchvision."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif zero_init_residual and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, num_classes) from images (b, in_channels, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.noise(images)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet18(*, num_classes: int, in_channels: int = 3, dropout: float = 0.0, input_noise: float = 0.0) -> ResNet:
    """ResNet-18: 11,689,512 parameters for 3 channels and 1000 classes."""
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
        input_noise=input_noise,
    )


def resnet50(*, num_classes: int, in_channels: int = 3, dropout: float = 0.0, input_noise: float = 0.0) -> ResNet:
    """ResNet-50: 25,557,032 parameters for 3 channels and 1000 classes."""
    return ResNet(
        Bottleneck,
        (3, 4, 6, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
        input_noise=input_noise,
    )
