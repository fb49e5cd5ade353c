"""The network of the paper's CIFAR-10 experiments (section 4.2): a pre-activation ResNet of 14 layers.

As in the code of the loss-correction paper (Patrini et al., CVPR 2017): 2 + 6n layers with n = 2, widths 16, 32 and 64,
and biases in all convolutions. BatchNorm's momentum and epsilon are torch's. For some months that code had other widths
by mistake; the paper's own runs may have used those.
"""

from __future__ import annotations

from torch import Tensor, nn

from twostage.models.layers import GaussianNoise, he_normal_

STEM_WIDTH = 16
STAGES = ((16, 1), (32, 2), (64, 2))
"""width, and stride of the first unit"""
UNITS = 2
"""residual units in each stage: n"""


class Unit(nn.Module):
    """A pre-activation residual unit: (BN, ReLU), 3x3, BN, ReLU, dropout, 3x3, added to the shortcut.

    Args:
        activated: the input has been through BN and ReLU, as behind the stem; the unit begins with its convolution.
    """

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, dropout: float = 0.0, activated: bool = False
    ) -> None:
        super().__init__()
        self.bn1 = nn.Identity() if activated else nn.BatchNorm2d(in_channels)
        self.relu1 = nn.Identity() if activated else nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        same = in_channels == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu1(self.bn1(x)))
        y = self.conv2(self.dropout(self.relu2(self.bn2(y))))
        total: Tensor = self.shortcut(x) + y
        return total


class ResNet14(nn.Module):
    """175,626 trainable parameters for 3 channels and 10 classes. Any input size: the last pooling is global."""

    def __init__(
        self, *, num_classes: int, in_channels: int = 3, dropout: float = 0.0, input_noise: float = 0.0
    ) -> None:
        super().__init__()
        self.noise = GaussianNoise(input_noise)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, STEM_WIDTH, 3, padding=1), nn.BatchNorm2d(STEM_WIDTH), nn.ReLU(inplace=True)
        )
        units: list[Unit] = []
        width = STEM_WIDTH
        for channels, first_stride in STAGES:
            for stride in (first_stride, *[1] * (UNITS - 1)):
                units.append(Unit(width, channels, stride=stride, dropout=dropout, activated=not units))
                width = channels
        self.units = nn.Sequential(*units)
        self.head = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )
        he_normal_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, num_classes) from images (b, in_channels, H, W)."""
        logits: Tensor = self.head(self.units(self.stem(self.noise(images))))
        return logits
