"""What every stage that computes needs: the processes, the dataset's views, the loader; and what identifies a stage."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import nn

from twostage.config import Config
from twostage.data import plan
from twostage.data.augment import NUM_CHANNELS
from twostage.data.dataset import Dataset
from twostage.data.loader import ImageLoader, open_loader
from twostage.data.schema import InputError
from twostage.data.views import Views, open_views
from twostage.models import build_model
from twostage.models.initial import COUNTER, take_over
from twostage.runtime import watchdog
from twostage.runtime.initial_weights import InitialWeights, read_initial_weights
from twostage.runtime.limits import check_runtime
from twostage.runtime.mean_image import mean_image
from twostage.runtime.world import World, agree, start, synchronise_batchnorm
from twostage.runtime.zero import ZeroOptimizer, prepare
from twostage.runtime.zero_config import asked_for


@dataclass(frozen=True)
class Session:
    """An open run."""

    config: Config
    accelerator: Accelerator
    world: World
    views: Views
    loader: ImageLoader
    deepspeed: Path | None = None
    """DeepSpeed's configuration, where the launcher asks for it"""

    @property
    def run_dir(self) -> Path:
        return self.config.run.dir

    def say(self, line: str) -> None:
        """Prints a line, once however many processes there are."""
        if self.world.is_main:
            print(line, flush=True)

    def table(self, values: Any) -> torch.Tensor:
        """A per-sample table on the device, to be gathered from by sample index."""
        return torch.as_tensor(values, device=self.world.device)

    @functools.cached_property
    def initial_weights(self) -> InitialWeights | None:
        """What `model.weights` names, read once; None where it names nothing.

        Raises:
            InputError: it cannot be had, or `model.class_layer` is set without it.
        """
        model = self.config.model
        if model.weights is None and model.class_layer != "new":
            raise InputError(f"model.class_layer is {model.class_layer}, but model.weights names no weights: set both")
        return None if model.weights is None else read_initial_weights(model.weights, model.name, self.world)

    def initial_inputs(self) -> dict[str, Any]:
        """What a stage's result depends on, further to `inputs`, where training begins with the initial weights."""
        if self.initial_weights is None:
            return {}
        return {"model.weights": self.initial_weights.digest, "model.class_layer": self.config.model.class_layer}

    def new_model(
        self,
        *,
        output_norm: bool = False,
        initial: bool = False,
        dropout: float | None = None,
        input_noise: float | None = None,
        num_outputs: int | None = None,
    ) -> nn.Module:
        """The configured network with new weights that follow from rng_seed alone, the same on every rank.

        Args:
            output_norm: puts BatchNorm behind the outputs, for losses that fall with their size.
            initial: puts the weights that `model.weights` names in place of them, for a training that begins here.
            dropout, input_noise: in place of the configured ones; neither has weights.
            num_outputs: for something else than the classes; their layer is new then, whatever the initial weights are.

        Raises:
            InputError: no such network, the factory does not fit, or the initial weights do not.
        """
        torch.manual_seed(derived_seed(self.config.run.rng_seed, "weights"))
        try:
            model = build_model(
                self.config.model.name,
                num_classes=num_outputs or self.views.num_classes,
                in_channels=NUM_CHANNELS[self.config.augment.channels],
                image_size=self.config.augment.size,
                dropout=self.config.model.dropout if dropout is None else dropout,
                input_noise=self.config.model.input_noise if input_noise is None else input_noise,
            )
        except (ValueError, ImportError) as error:
            raise InputError(f"model.name: {error}") from error
        if initial and self.initial_weights is not None:
            self._take_over(model, self.initial_weights, num_outputs)
        if output_norm:
            model = nn.Sequential(model, nn.BatchNorm1d(self.views.num_classes))
        # The order in which images come from the decoder, and a tenth to a quarter faster, on a CPU too
        return model.to(self.world.device, memory_format=torch.channels_last)   # type: ignore[call-overload, no-any-return]

    def _take_over(self, model: nn.Module, weights: InitialWeights, num_outputs: int | None) -> None:
        keep, num_classes = self.config.model.class_layer == "loaded", num_outputs or self.views.num_classes
        keep = keep and num_outputs is None
        try:
            new = take_over(
                model, weights.tensors, num_classes=num_classes, where=weights.where, keep_class_layer=keep
            )
        except ValueError as error:
            raise InputError(f"model.weights: {error}") from error
        new = [name for name in new if not name.endswith(f".{COUNTER}")]
        self.say(f"initial weights from {weights.where}" + (f"; new: {', '.join(new)}" if new else ""))

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int, pieces: int = 1
    ) -> tuple[nn.Module, torch.optim.Optimizer | ZeroOptimizer]:
        """The network and the optimizer as all processes train them together: by accelerate, or by DeepSpeed.

        Args:
            batch_size: of the global batch.
            pieces: in which each process takes its slots, one after the other.

        Raises:
            InputError: see `zero.prepare`; or `runtime.sync_batch_norm` is set without a GPU.
        """
        self.accelerator.free_memory()      # else it would keep the networks and moments of all earlier stages
        if self.config.runtime.sync_batch_norm:
            synchronise_batchnorm(model, self.world)
        if self.deepspeed is None:
            network, prepared = self.accelerator.prepare(model, optimizer)
            return network, prepared
        return prepare(
            model,
            optimizer,
            self.deepspeed,
            batch_size=batch_size,
            pieces=pieces,
            runtime=self.config.runtime,
            world=self.world,
        )

    def seed_rank(self, purpose: str) -> None:
        """Seeds what dropout and input noise draw from: differently on every rank, equally in every run."""
        seed = derived_seed(self.config.run.rng_seed, purpose, self.world.rank)
        torch.manual_seed(seed)
        random.seed(seed)       # a network of the user's may draw from these two
        np.random.seed(seed % 2**32)

    def pieces(self, batch_size: int, *, halves: bool = False, section: str = "") -> int:
        """In how many pieces each process takes its slots of one step: `plan.num_pieces`."""
        micro_batch = self.config.runtime.micro_batch
        return plan.num_pieces(batch_size, self.world.size, micro_batch, halves=halves, section=section)

    def draws(
        self, batch_size: int, *, epoch: int, num_views: int, pieces: int
    ) -> Callable[[int], npt.NDArray[np.float32]]:
        """What augments this rank's slots of each global batch of an epoch, piece by piece: (num_views, slots, 5)."""
        rng_seed, world = self.config.run.rng_seed, self.world
        size = batch_size // world.size // pieces

        def of_piece(number: int) -> npt.NDArray[np.float32]:
            step, piece = divmod(number, pieces)
            first = (world.rank * pieces + piece) * size
            all_slots = plan.draws(batch_size, rng_seed=rng_seed, epoch=epoch, step=step, num_views=num_views)
            return all_slots[:, first : first + size]

        return of_piece

    def inputs(self, *sections: str, **more: Any) -> dict[str, Any]:
        """All that a stage's result depends on, flat: the dataset's digests, configuration fields, and `more`."""
        data = dataclasses.asdict(self.config.data)
        del data["dataset"]     # a dataset may be moved; its digest says whether it is the same
        model = dataclasses.asdict(self.config.model)
        del model["weights"], model["class_layer"]      # see initial_inputs
        tree = {
            "run.rng_seed": self.config.run.rng_seed,
            "data": data,
            "model": model,
            "augment": dataclasses.asdict(self.config.augment),
            "runtime.precision": self.config.runtime.precision,
            "runtime.compile": self.config.runtime.compile,
            **({"runtime.sync_batch_norm": True} if self.config.runtime.sync_batch_norm else {}),
            "loader.window_shards": self.config.loader.window_shards,
            **({} if self.config.loader.fancy_upsampling else {"loader.fancy_upsampling": False}),
            **{name: dataclasses.asdict(getattr(self.config, name)) for name in sections},
        }
        return {**self.views.digests, **flat(tree), **more}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, with values as JSON gives them back."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = json.loads(json.dumps(value, default=str))
    return leaves


def code_digests() -> dict[str, str]:
    """SHA-256, shortened, of each file of this package: hosts may have different checkouts."""
    package = Path(__file__).parents[1]
    return {
        str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(package.rglob("*.py"))
    }


def derived_seed(rng_seed: int, *purpose: object) -> int:
    """A seed of its own for every purpose, so that no two uses of random numbers share a sequence."""
    digest = hashlib.sha256(repr((rng_seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def open_session(config: Config) -> Session:
    """Starts the processes' common run: dataset, views and loader, checked to be the same on every rank.

    Raises:
        InputError: dataset or labels are missing or damaged, or ranks were started with different configurations.
    """
    check_runtime(config.runtime)
    deepspeed = asked_for()
    accelerator, world = start(config.runtime)
    watchdog.start(config.runtime.watchdog_seconds, world, config.run.dir)
    dataset = Dataset.open(config.data.dataset)
    views = open_views(dataset, config.data, config.run.rng_seed)
    if world.size > 1:
        agree(json.dumps(code_digests(), sort_keys=True), "code", world)
    agree(json.dumps(flat(dataclasses.asdict(config)), sort_keys=True), "configuration", world)
    agree(json.dumps(views.digests, sort_keys=True), "dataset", world)
    loader = open_loader(
        dataset,
        config.augment,
        config.loader,
        world.device,
        half=world.device.type == "cuda" and config.runtime.precision != "fp32",
        mean_image=mean_image(config, views, world) if config.augment.mean == "image" else None,
        on_progress=watchdog.feed,
    )
    return Session(
        config=config, accelerator=accelerator, world=world, views=views, loader=loader, deepspeed=deepspeed
    )
