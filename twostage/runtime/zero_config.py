"""DeepSpeed's configuration: read from the file that the launcher names, and filled in from the run's own.

Whatever a run computes is said once, in its own configuration. So the file says how the optimizer's state is spread
over the processes; batch size, precision and bucket sizes are `"auto"` there and become numbers here; and what would
change the result behind the configuration's back, as DeepSpeed's own optimizers, clipping or loss scaling do, is
refused. Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from twostage.data.schema import InputError, nearest

USE: Final = "ACCELERATE_USE_DEEPSPEED"
FILE: Final = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
AUTO: Final = "auto"
MAX_BUCKET: Final = 500_000_000
"""elements; DeepSpeed's own default, 2 GB of fp32"""
KNOWN: Final = {
    "": {
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "zero_allow_untested_optimizer",
        "zero_optimization",
        "torch_autocast",
        "steps_per_print",
        "wall_clock_breakdown",
        "memory_breakdown",
        "comms_logger",
    },
    "zero_optimization": {
        "stage",
        "reduce_bucket_size",
        "allgather_bucket_size",
        "allgather_partitions",
        "contiguous_gradients",
        "overlap_comm",
        "reduce_scatter",
        "compute_grad_norm",
    },
    "torch_autocast": {"enabled", "dtype", "lower_precision_safe_modules"},
}
REFUSED: Final = {
    "optimizer": "the run's configuration says which optimizer is used (pretrain.optimizer, train.optimizer, ...)",
    "scheduler": "the run's configuration says how the learning rate changes",
    "bf16": "it turns BatchNorm's weights and statistics into bfloat16: use torch_autocast",
    "fp16": "it turns BatchNorm's weights and statistics into float16: use torch_autocast",
    "amp": "use torch_autocast",
    "train_batch_size": "the run's configuration says it (pretrain.batch_size, train.batch_size, ...)",
    "offload_optimizer": "the optimizer's state of an image classifier fits beside its weights",
    "offload_param": "the weights of an image classifier fit on a GPU",
    "round_robin_gradients": "it spreads parameters in another order than checkpoints know",
}


def asked_for() -> Path | None:
    """The DeepSpeed file that the launcher names; None where it asks for no DeepSpeed.

    Raises:
        InputError: it asks for DeepSpeed without naming a file.
    """
    if os.environ.get(USE, "false").lower() != "true":
        return None
    name = os.environ.get(FILE, "none")
    if name.lower() in ("", "none"):
        raise InputError(
            "the launcher asks for DeepSpeed without naming its file: set deepspeed_config.deepspeed_config_file in "
            "accelerate's configuration, to launch/deepspeed/zero1.json for instance"
        )
    return Path(name)


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Within it, accelerate does not see that it launched with DeepSpeed: its plugin is not used, see `zero`."""
    value = os.environ.pop(USE, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[USE] = value


def read_config(
    path: Path, *, batch_size: int, num_processes: int, pieces: int, precision: str, parameters: Mapping[str, int]
) -> dict[str, Any]:
    """The file's content with every `"auto"` filled in.

    Args:
        batch_size: of the global batch, which `num_processes` share, each taking its slots in `pieces`.
        precision: `runtime.precision`.
        parameters: number of elements by name, of those that are trained.

    Raises:
        InputError: no such file, no JSON, a setting that is unknown or refused, an `"auto"` that nothing here fills in,
            or a value that contradicts the run's configuration.
    """
    config = _read(path)
    _check_names(path, config)
    if batch_size % (num_processes * pieces):
        raise InputError(f"batch_size: a global batch of {batch_size} does not divide among {num_processes} processes")
    if precision == "fp16":
        raise InputError("runtime.precision: fp16 is not available with DeepSpeed; use bf16")
    zero, autocast = config["zero_optimization"], config.setdefault("torch_autocast", {"enabled": AUTO})
    largest, total = max(parameters.values()), sum(parameters.values())
    micro_batch = batch_size // num_processes // pieces
    _fill(path, config, "train_micro_batch_size_per_gpu", micro_batch, "batch_size / processes / pieces")
    _fill(path, config, "gradient_accumulation_steps", pieces, "pieces of a step")
    # DeepSpeed's default clips at 1.0
    _fill(path, config, "gradient_clipping", 0.0, "no clipping")
    config["zero_allow_untested_optimizer"] = True
    # a few buckets, so that gradients travel while others are still computed
    zero["reduce_bucket_size"] = _bucket(path, zero, "reduce_bucket_size", max(largest, -(-total // 4)))
    zero["allgather_bucket_size"] = _bucket(path, zero, "allgather_bucket_size", total)
    _fill(path, autocast, "enabled", precision == "bf16", f"runtime.precision: {precision}")
    if precision == "bf16":
        _fill(path, autocast, "dtype", "bfloat16", f"runtime.precision: {precision}")
    else:
        autocast.pop("dtype", None)
    left = [name for name, value in _leaves(config) if value == AUTO]
    if left:
        raise InputError(f'{path}: "auto" is not filled in for {", ".join(left)}; write a value')
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"DeepSpeed's file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"DeepSpeed's file {path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization"), dict):
        raise InputError(f"{path} has no section zero_optimization: see launch/deepspeed/zero1.json")
    stage = config["zero_optimization"].get("stage")
    if stage not in (1, 2):
        raise InputError(
            f"{path}: zero_optimization.stage is {json.dumps(stage)}; it must be 1 or 2. Stage 0 is what accelerate "
            "does without DeepSpeed; stage 3 splits the weights too, which pays for networks that do not fit on a GPU"
        )
    return config


def _check_names(path: Path, config: dict[str, Any]) -> None:
    for section, known in KNOWN.items():
        part = config.get(section, {}) if section else config
        if not isinstance(part, dict):
            raise InputError(f"{path}: {section} must be a section")
        for name in part:
            full = f"{section}.{name}" if section else name
            if name in REFUSED:
                raise InputError(f"{path}: remove {full}: {REFUSED[name]}")
            if name not in known:
                raise InputError(f"{path}: unknown setting {full}; {nearest(name, known)}")


def _fill(path: Path, section: dict[str, Any], name: str, value: Any, why: str) -> None:
    """Puts `value` where the file says auto or nothing; refuses another one."""
    found = section.get(name, AUTO)
    if found != AUTO and found != value:
        raise InputError(
            f"{path}: {name} is {json.dumps(found)}, but the run's configuration makes it {json.dumps(value)} ({why}); "
            f'write "auto"'
        )
    section[name] = value


def _bucket(path: Path, section: dict[str, Any], name: str, size: int) -> int:
    """A number of elements, even as DeepSpeed wants it."""
    found = section.get(name, AUTO)
    if found == AUTO:
        return min(MAX_BUCKET, size + size % 2)
    if isinstance(found, bool) or not isinstance(found, int) or found < 2 or found % 2:
        raise InputError(f'{path}: {name} is {json.dumps(found)}; it must be an even number of elements, or "auto"')
    return found


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
