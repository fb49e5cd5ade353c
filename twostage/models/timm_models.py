"""Networks of the library timm by name, where it is installed: `timm:resnet50`, `timm:vit_small_patch16_224`."""

from __future__ import annotations

import importlib
from typing import Any, Final

from torch import Tensor, nn

from twostage.models.names import nearest

PREFIX: Final = "timm:"


def build_timm(
    name: str, *, num_classes: int, in_channels: int, image_size: int, dropout: float, input_noise: float
) -> nn.Module:
    """A new network of timm's, with weights drawn from torch's global state.

    Args:
        name: `timm:NAME`, as `timm.create_model` knows it.
        image_size: H = W in pixels; told to networks that are built for one size.
        dropout: timm's `drop_rate`, before the class layer in most of its networks.
        input_noise: must be 0.

    Raises:
        ValueError: no such network (names the nearest), or one that does not take dropout, this number of channels or
            this size.
        ImportError: timm is not installed.
    """
    timm, name = _timm(name), name.removeprefix(PREFIX)
    if input_noise != 0:
        raise ValueError(f"timm's networks take no 'input_noise', but input_noise is {input_noise}: set it to 0")
    _check(timm, name)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if dropout != 0:
        options["drop_rate"] = dropout
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        options["img_size"] = image_size
    return _create(timm, name, pretrained=False, **options)


def timm_weights(name: str) -> dict[str, Tensor]:
    """The weights that timm offers for a network, by name; downloaded by timm, with its class layer.

    Raises:
        ValueError: no such network, timm has no weights for it, or they could not be fetched.
        ImportError: timm is not installed.
    """
    timm, name = _timm(name), name.removeprefix(PREFIX)
    _check(timm, name)
    if timm.get_pretrained_cfg(name) is None:
        raise ValueError(f"timm has no pretrained weights for {name!r}")
    weights: dict[str, Tensor] = _create(timm, name, pretrained=True).state_dict()
    return weights


def _timm(name: str) -> Any:
    # By its name, so that nothing here needs it to be installed.
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"network {name!r}: {error.name!r} is not installed: `pip install timm`, with a torchvision that goes with "
            "your torch"
        ) from error


def _check(timm: Any, name: str) -> None:
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; {nearest(name, timm.list_models(), show=5)}")


def _create(timm: Any, name: str, **options: Any) -> nn.Module:
    """Whatever timm or its downloader raises comes out as ValueError: it has no exception of its own."""
    try:
        model: nn.Module = timm.create_model(name, **options)
    except Exception as error:
        asked = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ValueError(f"timm cannot make {name!r} with {asked}: {' '.join(str(error).split())}") from error
    return model
