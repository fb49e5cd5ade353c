"""The network of the paper's MNIST experiments (section 4.2): fully connected, two hidden layers of 128."""

from __future__ import annotations

from torch import Tensor, nn

from twostage.models.layers import GaussianNoise, he_normal_

HIDDEN = 128


class MLP(nn.Module):
    """num_inputs-128-128-num_classes with ReLU, and dropout after each hidden layer.

    118,282 parameters for 28 x 28 gray and 10 classes, as in the loss-correction paper's code, whose dropout is 0.2.
    """

    def __init__(self, *, num_inputs: int, num_classes: int, dropout: float = 0.0, input_noise: float = 0.0) -> None:
        super().__init__()
        self.noise = GaussianNoise(input_noise)
        self.hidden1 = nn.Linear(num_inputs, HIDDEN)
        self.hidden2 = nn.Linear(HIDDEN, HIDDEN)
        self.fc = nn.Linear(HIDDEN, num_classes)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        he_normal_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, num_classes) from images (b, C, H, W) with C·H·W = num_inputs."""
        x = self.noise(images).flatten(1)
        x = self.dropout(self.relu(self.hidden1(x)))
        x = self.dropout(self.relu(self.hidden2(x)))
        logits: Tensor = self.fc(x)
        return logits
