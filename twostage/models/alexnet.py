"""AlexNet (Krizhevsky, 2014, "one weird trick") with torchvision's names and shapes: its weight file loads unchanged.

One column of 64-192-384-256-256 convolutions. The compared figures (Table 4, rows 1-3 and 9) are of Caffe's AlexNet,
after Krizhevsky et al., 2012: 96-256-384-384-256 in two groups, with local response normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn

from twostage.models.layers import GaussianNoise

MIN_SIZE = 63
"""smallest side of an image that leaves a pixel behind the last pooling"""
POOLED = 6
HIDDEN = 4096


class AlexNet(nn.Module):
    """61,100,840 parameters for 3 channels and 1000 classes. Any input of at least 63 pixels a side.

    Args:
        dropout: before each of the two hidden linear layers. torchvision's has 0.5.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int = 3, dropout: float = 0.0, input_noise: float = 0.0
    ) -> None:
        super().__init__()
        self.noise = GaussianNoise(input_noise)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * POOLED**2, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, num_classes) from images (b, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(self.noise(images))).flatten(1))
        return logits
