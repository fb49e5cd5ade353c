"""The networks: the paper's own, torchvision's ResNets and AlexNet, timm's, or any module by import path."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from twostage.models.alexnet import MIN_SIZE, AlexNet
from twostage.models.mlp import MLP
from twostage.models.names import nearest
from twostage.models.resnet import resnet18, resnet50
from twostage.models.resnet14 import ResNet14
from twostage.models.timm_models import PREFIX, build_timm

BUILT_IN = ("alexnet", "mlp", "resnet14", "resnet18", "resnet50")


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    dropout: float = 0.0,
    input_noise: float = 0.0,
) -> nn.Module:
    """A new network: logits (b, num_classes) from images (b, C, H, W). Weights are drawn from torch's global state.

    Args:
        name: one of BUILT_IN; or `timm:NAME` for a network of timm's, where that is installed; or
            `package.module:factory` for a class or function that returns an nn.Module. A factory is called with
            num_classes=, and with in_channels=, image_size=, dropout= and input_noise= where its signature names them.
        in_channels, image_size: C, and H = W.
        dropout: probability, within the residual units or after the hidden layers; 0: none.
        input_noise: standard deviation of Gaussian noise on the normalised input, in training mode; 0: none.

    Raises:
        ValueError: no built-in network of that name (names the nearest), a number out of range, images too small for
            it, or a factory that does not fit: not in its module, does not take num_classes (or dropout, where it is
            not 0), returns no Module.
        ImportError: the factory's module, or timm, cannot be imported.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout}: must be a probability, at least 0 and below 1")
    if not input_noise >= 0:
        raise ValueError(f"input_noise {input_noise}: must be a standard deviation, at least 0")
    shape = {"in_channels": in_channels, "image_size": image_size}
    perturbation = {"dropout": dropout, "input_noise": input_noise}
    match name:
        case "alexnet":
            if image_size < MIN_SIZE:
                raise ValueError(f"images of {image_size} pixels are too small for alexnet: at least {MIN_SIZE}")
            return AlexNet(num_classes=num_classes, in_channels=in_channels, **perturbation)
        case "mlp":
            return MLP(num_inputs=in_channels * image_size**2, num_classes=num_classes, **perturbation)
        case "resnet14":
            return ResNet14(num_classes=num_classes, in_channels=in_channels, **perturbation)
        case "resnet18":
            return resnet18(num_classes=num_classes, in_channels=in_channels, **perturbation)
        case "resnet50":
            return resnet50(num_classes=num_classes, in_channels=in_channels, **perturbation)
    if name.startswith(PREFIX):
        return build_timm(name, num_classes=num_classes, **shape, dropout=dropout, input_noise=input_noise)
    if ":" in name:
        return _call_factory(name, {"num_classes": num_classes}, shape, perturbation)
    raise ValueError(
        f"no network {name!r}; {nearest(name, BUILT_IN)}, {PREFIX}NAME, or your own as package.module:factory"
    )


def _call_factory(
    path: str, required: dict[str, Any], shape: dict[str, Any], perturbation: dict[str, float]
) -> nn.Module:
    """Imports `package.module:factory` and calls it with what its signature names."""
    factory = _import_factory(path)
    # Only what is named: **kwargs often leads to a constructor that knows nothing of these (torchvision's, for one).
    named = inspect.signature(factory).parameters
    for argument, value in perturbation.items():
        if value != 0 and argument not in named:
            raise ValueError(f"{path} takes no {argument!r}, but {argument} is {value}: set it to 0, or add it there")
    arguments = required | {key: value for key, value in {**shape, **perturbation}.items() if key in named}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{path} cannot be called with {', '.join(f'{key}=' for key in arguments)}: {error}; it must take "
            "num_classes=, and need nothing but that, in_channels=, image_size=, dropout= and input_noise="
        ) from error
    model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{path} returned {type(model).__name__}: it must return the network, a torch.nn.Module")
    return model


def _import_factory(path: str) -> Any:
    """The callable at `package.module:factory`."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"network {path!r}: write package.module:factory")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The module itself, or a parent of it; otherwise it is there, and one of its own imports is not.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ImportError(
                f"network {path!r}: no module {error.name!r}: install it, or add the folder it lies in to PYTHONPATH"
            ) from error
        raise ImportError(f"network {path!r}: {module_name} needs {error.name!r}, which is not installed") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        public = [key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key))]
        raise ValueError(f"network {path!r}: {module_name} has no {attribute!r}; {nearest(attribute, public)}")
    if not callable(factory):
        raise ValueError(f"network {path!r}: {attribute} is {type(factory).__name__}, not a class or function")
    return factory
