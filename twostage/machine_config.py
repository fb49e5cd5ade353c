"""The sections of the configuration that say how a run uses the machine, and not what it computes; see config.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How the bytes get to the network. Nothing here changes a result, but for `window_shards`, and where a GPU decodes
    `fancy_upsampling`.
    """

    cache: Literal["auto", "always", "never"] = "auto"
    """decode once and keep all images in device memory; auto: where they fit into `cache_gib`"""
    cache_gib: float = 2.0
    """limit for `cache: auto`, in GiB"""
    read_threads: int = 4
    """threads that read image bytes from the shards"""
    decode_threads: int = 2
    """DALI's threads for decoding and augmentation"""
    prefetch: int = 4
    """batches that are read ahead"""
    window_shards: int = 0
    """samples are shuffled among this many shards at a time; 0: among all"""
    decoder: Literal["auto", "cpu"] = "auto"
    """who decodes: auto: the GPU where there is one; cpu: the CPU, while a GPU still augments"""
    hw_decoder_load: float = 0.65
    """where a GPU decodes: share of the images that its hardware JPEG decoder takes"""
    fancy_upsampling: bool = True
    """where a GPU decodes JPEGs: colours, which are stored at half the resolution, are interpolated as the CPU does it,
    so that both give the same pixels but for rounding; false: each is used for four pixels, which may be faster"""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How it runs; nothing here changes what is computed, but for `precision`, with BatchNorm `micro_batch` and
    `sync_batch_norm`, and in the last bits `compile`.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """of the forward pass; weights stay fp32"""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """torch.compile of the training step's forward and backward pass, in this mode; costs up to a minute at the start.
    reduce-overhead replays CUDA graphs, which pays where steps are short: small networks, small batches"""
    micro_batch: int | None = None
    """most slots of a global batch that a process takes at once; more are taken in equal pieces, whose gradients are
    added up, so the global batch may be larger than memory. BatchNorm sees one piece. null: all slots at once"""
    sync_batch_norm: bool = False
    """on GPUs: BatchNorm takes its statistics from all processes' slots (SyncBatchNorm), which costs time in each layer
    and pays where a process has only few slots"""
    device: Literal["auto", "cpu"] = "auto"
    """auto: a GPU where there is one"""
    checkpoint_steps: int | None = None
    """write a checkpoint every so many steps, besides the one after every (sub-)epoch"""
    keep_checkpoints: int = 2
    """older ones are removed after a newer one is complete"""
    log_steps: int = 50
    """steps between two lines of metrics"""
    tracker: Literal["tensorboard", "mlflow", "wandb", "none"] = "tensorboard"
    """where metrics go besides metrics.jsonl; mlflow, wandb: with the extra `tracking`, see runtime/trackers.py"""
    index_log: bool = False
    """keep a list of which samples each step was taken on: `indices/rank-*.jsonl` in the stage's folder"""
    max_skipped_steps: int = 10
    """how many steps of one (sub-)epoch may be skipped because the loss of some process is not finite; one more ends
    the run"""
    start_seconds: float = 50
    """how long processes that a scheduler starts one by one wait for each other, before they say who is missing"""
    watchdog_seconds: float | None = 900
    """end the run, with the stacks of all threads of all processes, when no step is taken for so long; must be longer
    than a checkpoint takes, and the first step with `compile`. null: wait for ever"""
