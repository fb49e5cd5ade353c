"""`twostage export`: a trained network as a folder that other tools read; laid out as on the Hugging Face hub."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from safetensors.numpy import save as save_arrays
from torch import Tensor, nn

from twostage.cli import Parser
from twostage.data.schema import InputError, write_aside, write_json
from twostage.report.card import card
from twostage.report.trained import (
    EXPORT_FORMAT,
    MEAN_IMAGE,
    WEIGHTS,
    WHICH_MODEL,
    Trained,
    export_config,
    open_trained,
)

PROGRAM: Final = "model.pt2"
ONNX: Final = "model.onnx"
ONNX_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
MAX_DIFFERENCE: Final = 1e-3
"""of probabilities, between the network here and what was written; more is an error"""
DESCRIPTION: Final = """\
Write a trained network into a folder that other tools read, laid out as on the Hugging Face hub:

  model.safetensors  the weights; torchvision's names where the network is one of torchvision's
  config.json        architecture, names of the classes, how images are prepared
  model.pt2          the network itself for torch.export.load: no code of ours is needed
  model.onnx         the same for ONNX Runtime; with the packages of the extra `export` only
  README.md          a model card made from the run: figures, data, how labels were mined, limits; how to load it

model.pt2 and model.onnx take batches of any size, and are compared with the network after they are written."""
EXAMPLES: Final = """\
examples:
  twostage export runs/first exported                    the final model of the run
  twostage export runs/first exported --model pretrain   another of its models
  twostage export runs/first exported --without onnx     without one of the two forms
  twostage export runs/first exported --dry-run          what would be written, and nothing else
  twostage predict exported holiday/                     and use it
"""


def export(arguments: list[str]) -> int:
    """`twostage export RUN OUT`."""
    args = make_parser().read(arguments)
    run, out, without = args.run, args.out, set(args.without)
    _check_out(out, run)
    if not (run / "config.yaml").is_file() and (run / "config.json").is_file():
        raise InputError(f"{run} is an exported folder already: name the run folder")
    trained = open_trained(run, args.name)
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    with_onnx = "onnx" not in without and not missing
    files = [WEIGHTS, "config.json", *([MEAN_IMAGE] if trained.mean_image is not None else [])]
    files += [*([PROGRAM] if "pt2" not in without else []), *([ONNX] if with_onnx else []), "README.md"]
    if args.dry_run:
        print(f"export: would write {', '.join(files)} into {out}, of model {trained.name!r} in {run}")
    else:
        differences = write_export(run, trained, out, pt2="pt2" not in without, onnx=with_onnx)
        for name, difference in differences.items():
            print(f"{name}: the same answers as the network here; probabilities differ by at most {difference:.1e}")
        print(f"export: {trained.name} of {run} in {out}: {', '.join(files)}")
    if missing and "onnx" not in without:
        print(f"no {ONNX}, as {', '.join(missing)} is not installed: pip install 'twostage[export]' and export again")
    return 0


def write_export(run: Path, trained: Trained, out: Path, *, pt2: bool, onnx: bool) -> dict[str, float]:
    """Writes the folder aside and renames it; an earlier export in its place is replaced.

    Returns:
        The greatest difference of a probability from the network's own, for each form by file name.

    Raises:
        InputError: the network cannot be written in a form, or gives other answers in it.
    """
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        network = trained.network()
        tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
        # "format" is what other libraries look for
        write_aside(aside / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
        if trained.mean_image is not None:
            write_aside(aside / MEAN_IMAGE, save_arrays({"mean_image": trained.mean_image}))
        differences: dict[str, float] = {}
        if pt2 or onnx:
            program = _program(network, trained)
            if pt2:
                differences[PROGRAM] = _write_program(program, network, trained, aside / PROGRAM)
            if onnx:
                differences[ONNX] = _write_onnx(program, network, trained, aside / ONNX)
        made_from = {
            "model": trained.name,
            "weights_sha256": trained.digest,
            "twostage": importlib.metadata.version("twostage"),
            "torch": str(torch.__version__),
        }
        write_aside(aside / "README.md", card(run, trained, differences, torch.__version__).encode())
        write_json(aside / "config.json", export_config(trained, made_from))
        _replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return differences


def _check_out(out: Path, run: Path) -> None:
    """Refuses to replace anything but an earlier export."""
    if out.resolve() == run.resolve() or out.resolve() in run.resolve().parents:
        raise InputError(f"{out} is or holds the run folder: choose another folder for the export")
    if out.resolve() == Path.cwd():
        raise InputError(f"{out} is the folder you are in, which would be replaced: name one in it, `exported` say")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is not a folder: choose another name")
    if not out.is_dir() or not any(out.iterdir()):
        return
    config = out / "config.json"
    if not config.is_file() or f'"format": "{EXPORT_FORMAT}"' not in config.read_text(errors="replace"):
        raise InputError(f"{out} holds something that `twostage export` did not write: choose another folder")
    known = {WEIGHTS, MEAN_IMAGE, PROGRAM, ONNX, "config.json", "README.md"}
    others = sorted(path.name for path in out.iterdir() if path.name not in known)
    if others:
        raise InputError(
            f"{out} is an earlier export, but {others[0]!r} is not of it: move that away, or choose another folder"
        )


def _replace(aside: Path, out: Path) -> None:
    """Between the two renames neither is there under its name; the earlier one is removed only after both."""
    earlier = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(earlier)
    aside.rename(out)
    shutil.rmtree(earlier, ignore_errors=True)


def _images(trained: Trained, num: int) -> Tensor:
    """Stand-ins for prepared images, (num, channels, size, size)."""
    generator = torch.Generator().manual_seed(0)
    shape = (num, trained.architecture.in_channels, trained.architecture.image_size, trained.architecture.image_size)
    return torch.randn(shape, generator=generator)


def _program(network: nn.Module, trained: Trained) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(network, (_images(trained, 2),), dynamic_shapes=({0: batch},))
    except Exception as error:          # torch.export has no one exception for what it cannot do
        raise _refused("traced by torch.export", "pt2 --without onnx", error) from error


def _write_program(
    program: torch.export.ExportedProgram, network: nn.Module, trained: Trained, path: Path
) -> float:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
        return _difference(loaded, network, trained, path.name)
    except InputError:
        raise
    except Exception as error:
        raise _refused("written by torch.export", "pt2", error) from error


def _write_onnx(program: torch.export.ExportedProgram, network: nn.Module, trained: Trained, path: Path) -> float:
    import onnxruntime

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)          # else a word about every part of torchvision that is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program,
                (_images(trained, 2),),
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                verbose=False,
            )
            assert written is not None
            written.save(path, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(np.asarray(session.run(["logits"], {"images": images.numpy()})[0]))

        return _difference(run, network, trained, path.name)
    except InputError:
        raise
    except Exception as error:
        raise _refused("written as ONNX", "onnx", error) from error
    finally:
        logger.setLevel(level)


def _difference(other: Any, network: nn.Module, trained: Trained, name: str) -> float:
    """Greatest difference of a probability, over batches of 1 and of 5."""
    greatest = 0.0
    with torch.no_grad():
        for num in (1, 5):
            images = _images(trained, num)
            greatest = max(greatest, float((other(images).softmax(1) - network(images).softmax(1)).abs().max()))
    if not greatest <= MAX_DIFFERENCE:
        form = "onnx" if name == ONNX else "pt2"
        raise InputError(f"{name} gives other probabilities, by {greatest:.1e}: leave it out by --without {form}")
    return greatest


def _refused(what: str, form: str, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(f"this network cannot be {what} ({reason}): leave it out by --without {form}")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="twostage export",
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to be made; an earlier export is replaced")
    parser.add_argument(
        "--model", dest="name", metavar="NAME",
        help=WHICH_MODEL,
    )
    parser.add_argument(
        "--without", action="append", choices=("pt2", "onnx"), default=[], metavar="FORM", help="leave out pt2 or onnx"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    return parser
