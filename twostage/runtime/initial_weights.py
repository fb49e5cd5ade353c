"""Where initial weights come from: a file, a URL through torch.hub's cache, or ImageNet's by the network's name."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from twostage.data.schema import InputError, file_digest
from twostage.models.initial import named_tensors
from twostage.models.timm_models import PREFIX as TIMM
from twostage.models.timm_models import timm_weights
from twostage.runtime import snapshot
from twostage.runtime.world import World, agree, gather_strings

IMAGENET: Final = "imagenet"
HOST: Final = "https://download.pytorch.org/models/"
IMAGENET_URLS: Final = {
    "alexnet": f"{HOST}alexnet-owt-7be5be79.pth",
    "resnet18": f"{HOST}resnet18-f37072fd.pth",
    "resnet50": f"{HOST}resnet50-0676ba61.pth",
}
"""torchvision's first ImageNet weights (V1) of each: 56.5, 69.8 and 76.1 % right in its own figures"""
SCHEMES: Final = ("http", "https", "file")
HASH_IN_NAME: Final = re.compile(r"-([0-9a-f]{8,64})\.")
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class InitialWeights:
    """Weights by name, on the CPU, with what identifies them."""

    tensors: dict[str, Tensor]
    digest: str
    """SHA-256 in hex: of the file, or of the tensors where timm delivered them"""
    where: str
    """path or name, for messages"""


def read_initial_weights(source: str, model_name: str, world: World) -> InitialWeights:
    """Finds and reads initial weights, on every rank; downloads on rank 0 first.

    Args:
        source: path of a .pth or safetensors file; its URL, with the first 8 or more digits of its SHA-256 in the name
            (`resnet50-0676ba61.pth`) or behind it (`…/model.safetensors#sha256=4fd7…`); or `imagenet`.
        model_name: for `imagenet`: torchvision's weights for this network, or timm's.

    Raises:
        InputError: no such file, no way to it, another hash, or something else than tensors in it; on all ranks alike.
    """
    found: InitialWeights | None = None
    for turn in ("rank 0", "others"):       # who shares a file system with rank 0 finds what that has downloaded
        problem = ""
        try:
            if found is None and (world.is_main or turn == "others"):
                found = _read(source, model_name)
        except (InputError, OSError) as error:
            problem = str(error)
        failed = next((problem for problem in gather_strings(problem, world) if problem), None)
        if failed is not None:
            raise InputError(f"model.weights: {failed}")
    assert found is not None
    agree(found.digest, "file of initial weights", world)
    return found


def _read(source: str, model_name: str) -> InitialWeights:
    if source == IMAGENET and model_name.startswith(TIMM):
        try:
            tensors = timm_weights(model_name)
        except (ValueError, ImportError) as error:
            raise InputError(str(error)) from error
        return InitialWeights(tensors, hashlib.sha256(snapshot.to_bytes(tensors)).hexdigest(), model_name)
    if source == IMAGENET:
        if model_name not in IMAGENET_URLS:
            raise InputError(
                f"no ImageNet weights are known for model.name {model_name!r}, only for "
                f"{', '.join(IMAGENET_URLS)} and {TIMM}NAME; name a file or its URL"
            )
        source = IMAGENET_URLS[model_name]
    check_source(source)
    path = _download(source) if _is_url(source) else Path(source)
    return InitialWeights(read_tensors(path), file_digest(path), str(path))


def check_source(source: str) -> None:
    """Refuses, by InputError, the path of a file that is not there; a URL is not looked up."""
    path = Path(source)
    if source == IMAGENET or _is_url(source) or path.is_file():
        return
    kind = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise InputError(f"{source} {kind}; name a .pth or safetensors file, its URL, or {IMAGENET}")


def _is_url(source: str) -> bool:
    return urllib.parse.urlsplit(source).scheme in SCHEMES and "://" in source


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .pth or safetensors file, told apart by their first bytes; nothing in it is run.

    Raises:
        InputError: it is damaged, or holds something else than tensors.
    """
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    content = snapshot.from_bytes(path.read_bytes(), str(path)) if is_safetensors else _unpickle(path)
    try:
        return named_tensors(content, str(path))
    except ValueError as error:
        raise InputError(str(error)) from error


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged, or holds more than tensors, which could run any code: it is not opened. "
            "Where you trust it, save its `state_dict()` alone and name that file"
        ) from error
    except Exception as error:      # torch's reader has no error of its own: of damage come a dozen kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise                   # the machine's failure
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a file of weights, or a damaged one ({reason})") from error


def _download(url: str) -> Path:
    """The file in torch.hub's cache ($TORCH_HOME/hub/checkpoints), fetched where it is not there; its hash is right."""
    plain, fragment = urllib.parse.urldefrag(url)
    name = Path(urllib.parse.urlsplit(plain).path).name
    in_name = HASH_IN_NAME.search(name)
    wanted = in_name[1] if in_name else fragment.removeprefix("sha256=").lower()
    if not re.fullmatch("[0-9a-f]{8,64}", wanted) or not PLAIN_NAME.fullmatch(name):
        raise InputError(
            f"{url}: add the file's hash, as …/NAME#sha256=HEX with 8 digits or more, or as a part of its "
            "name; or download it and name the file"
        )
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        _fetch(plain, path, wanted)
    found = file_digest(path)
    if not found.startswith(wanted):
        raise InputError(
            f"{path}, the copy of {plain}, has the SHA-256 {found}, not {wanted}…: delete it and run again"
        )
    return path


def _fetch(url: str, path: Path, wanted: str) -> None:
    """Downloads; torch.hub writes aside and renames when the hash is right."""
    print(f"downloading {url} to {path}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=wanted, progress=os.isatty(2))
    except RuntimeError as error:
        raise InputError(f"{url}: {error}: the file there is another one, or came damaged") from error
    except OSError as error:        # urllib's errors among them
        raise InputError(
            f"cannot download {url} ({error}); where there is no network, download it elsewhere, and name the file, or "
            f"put it at {path}"
        ) from error
