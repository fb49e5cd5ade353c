"""What `twostage plan` says, against numbers computed by hand, and against what stages and networks really do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from twostage.__main__ import main
from twostage.cli import parse
from twostage.config import Config
from twostage.data import plan
from twostage.data.dataset import Dataset
from twostage.data.schema import LabelColumn, dataset_marker, file_digest, write_json, write_labels, write_table
from twostage.data.views import open_views
from twostage.forecast.command import parse_rates, seconds_of
from twostage.forecast.memory import cache_bytes, measure, memory_of
from twostage.forecast.stages import Stage, stages_of
from twostage.models import build_model
from twostage.runtime.optimizers import make_optimizer

SPLITS = {"noisy_train": (500, 300, 200), "clean_train": (30, 20, 10), "val": (40, 30, 30), "test": (50, 50, 50)}
"""samples of each class"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of 1,310 samples of 64 pixels in 3 classes; there are no images."""
    out = tmp_path_factory.mktemp("tables")
    counts = {split: sum(classes) for split, classes in SPLITS.items()}
    num = sum(counts.values())
    split = np.repeat(list(counts), list(counts.values()))
    columns = {
        "index": np.arange(num),
        "split": pa.array(split).dictionary_encode(),
        **{name: np.zeros(num, dtype="i4") for name in ("shard", "offset", "size")},
        **{name: np.full(num, 64, dtype="i4") for name in ("width", "height")},
    }
    write_table(out / "samples.parquet", pa.table(columns))
    write_json(out / "dataset.json", dataset_marker(counts, 1, file_digest(out / "samples.parquet"), ["by hand"]))
    label = np.concatenate([np.repeat(np.arange(3), classes) for classes in SPLITS.values()])
    write_labels(out, LabelColumn(name="given", index=np.arange(num), label=label, class_names=("a", "b", "c"), how=""))
    return out


def config_of(dataset: Path, *more: str) -> Config:
    toy = ["--model.name=mlp", "--augment.size=32", "--augment.resize=48", "--pretrain.batch_size=64",
           "--train.batch_size=64", "--train.sub_epochs=7", "--noise_model.batch_size=40", "--run.dir=runs/nowhere",
           f"--data.dataset={dataset}"]  # fmt: skip
    return parse("plan", "", [*toy, *more])


def stages(dataset: Path, *more: str, num_processes: int = 1, kept: float = 0.25) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages_of(config_of(dataset, *more), num_processes, kept)[1]}


def test_steps_and_samples_are_those_computed_by_hand(dataset: Path) -> None:
    finetune = ("--run.finetune=true", "--finetune.batch_size=16", "--finetune.balance=false")
    found = stages(dataset, *finetune, num_processes=4)
    assert list(found) == ["pretrain", "rank", "train", "finetune", "evaluate"]
    pretrain = found["pretrain"]                            # 3 classes of 500: 1,500 slots
    assert (pretrain.steps, pretrain.passes, pretrain.samples, pretrain.validated) == (24, 10, 24 * 64, 100)
    assert found["rank"].steps == 1 and found["rank"].samples == 1000      # 4 batches of up to 256, one each
    train = found["train"]                                  # 125 + 75 + 50 kept, 3 x 125 balanced, 32 a step
    assert (train.steps, train.passes, train.samples) == (12, 7, 12 * 64)
    assert train.views == "250 labeled (375 balanced) (if 25 % are kept), 750 unlabeled"
    assert found["finetune"].steps == 4                     # 60 / 16
    assert found["evaluate"].passes == 3 and found["evaluate"].samples == 150
    assert stages(dataset, "--rank.batch_size=40")["evaluate"].steps == 4       # as `evaluate` does: 150 / 40
    by_unlabeled = stages(dataset, "--train.pass_over=unlabeled", kept=0.5)["train"]
    assert by_unlabeled.steps == 16                         # 500 / 32
    assert stages(dataset, "--train.pass_over=larger", kept=0.5)["train"].steps == 24       # 3 x 250 / 32
    assert stages(dataset, "--train.pass_over=larger", kept=0.05)["train"].steps == 30      # 950 / 32


def test_the_clean_set_and_the_baselines_count(dataset: Path) -> None:
    names = "forward,pseudo_label_clean,bottom_up,label_noise"
    found = stages(dataset, "--mine.rule=clean_filter", f"--run.baselines=[{names}]", "--clean_filter.batch_size=64")
    assert list(found) == [
        "pretrain", "clean_filter", "rank", "train", "baseline_cross_entropy", "rank_cross_entropy",
        "baseline_forward", "baseline_pseudo_label_clean", "baseline_bottom_up", "baseline_label_noise", "evaluate",
    ]  # fmt: skip
    assert found["clean_filter"].steps == 2                 # 3 x 30 = 90
    assert found["train"].views.startswith("310 labeled (465 balanced)")    # 155 of the largest class
    assert found["baseline_forward"].steps == 16            # 1,000 / 64, not balanced
    assert found["baseline_pseudo_label_clean"].views.startswith("60 labeled (90 balanced) (the clean set), 1,000 unl")
    assert found["baseline_bottom_up"].steps == 75          # 1,500 / 20
    alone = stages(dataset, "--run.two_stage=false", "--run.baselines=[cross_entropy]")
    assert list(alone) == ["baseline_cross_entropy", "evaluate"] and alone["evaluate"].passes == 1


def test_steps_are_those_that_stage_2_takes(dataset: Path, tmp_path: Path) -> None:
    """With labels that were mined."""
    config = config_of(dataset, f"--run.dir={tmp_path}")
    views = open_views(Dataset.open(dataset), config.data, 0)
    kept = np.random.default_rng(0).choice(views.train, 137, replace=False)
    (tmp_path / "mine").mkdir()
    write_table(tmp_path / "mine" / "seeds.parquet", pa.table({"index": kept, "label": views.labels[kept]}))
    write_json(tmp_path / "mine" / "done.json", {"inputs": {}, "results": {}})
    found = stages(dataset, f"--run.dir={tmp_path}")["train"]
    seeds = np.full(len(views.dataset), -1)
    seeds[kept] = views.labels[kept]
    rest = np.setdiff1d(views.train, kept)
    batches = plan.labeled_unlabeled_batches(kept, rest, batch_size=64, rng_seed=0, epoch=0, labeled_labels=seeds)
    assert found.steps == len(batches) and "137 labeled" in found.views and "(as mined)" in found.views


@pytest.mark.parametrize("name", ["adam", "adagrad", "sgd"])
def test_weights_and_the_optimizers_state_are_counted_as_torch_has_them(dataset: Path, name: str) -> None:
    config = config_of(dataset, f"--train.optimizer.name={name}")
    network = measure(config, 3)
    model = build_model("mlp", num_classes=3, in_channels=3, image_size=32)
    assert network.parameters == sum(p.numel() for p in model.parameters()) == 3072 * 128 + 128 + 129 * 128 + 129 * 3
    assert network.activations == 128 + 128 + 3
    opened = Dataset.open(dataset)
    memory = memory_of(config, config.train, opened, network, num_classes=3, num_views=2, num_processes=2)
    optimizer = make_optimizer(model, config.train.optimizer)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    held = sum(v.nbytes for state in optimizer.state.values() for k, v in state.items() if k != "step")
    assert memory.optimizer == held
    assert memory.weights == 3 * 4 * network.parameters     # with the gradients and the best ones
    assert memory.activations == 2 * 32 * 259 * 4           # two views of 32 samples each
    assert memory.cache == 1310 * 3 * 48 * 48 and cache_bytes(config_of(dataset, "--loader.cache=never"), opened) == 0
    assert cache_bytes(config_of(dataset, "--loader.cache_gib=0.001"), opened) == 0
    ensembling = config_of(dataset, "--train.method=temporal_ensembling", "--train.ema_decay=0.9")
    more = memory_of(ensembling, ensembling.train, opened, network, num_classes=3, num_views=1, num_processes=2)
    assert more.tables - memory.tables == 1310 * (3 * 4 + 8 + 3 * 8 + 8) and more.weights * 3 == memory.weights * 4


def test_activations_of_a_resnet_50_are_what_was_measured(dataset: Path) -> None:
    """configs/RECORDS.md: the Π step at batch 256 in bf16 took 21.6 GiB in all."""
    config = config_of(dataset, "--model.name=resnet50", "--augment.size=224", "--runtime.precision=bf16",
                       "--train.batch_size=256")  # fmt: skip
    memory = memory_of(config, config.train, Dataset.open(dataset), measure(config, 14), num_classes=14, num_views=2,
                       num_processes=1)  # fmt: skip
    assert 19.5 < memory.total / 2**30 < 23.5


class Curious(nn.Linear):
    """Looks at its numbers, of which torch's meta device has none."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        return super().forward(means if means.max().item() > 0 else -means)


def test_a_network_that_cannot_be_traced_is_measured_as_far_as_it_goes(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(dataset, f"--model.name={__name__}:Curious")
    assert measure(config, 3) == measure(config, 3).times(1) and measure(config, 3).activations is None
    assert main(["plan", "--run.dir=x", f"--data.dataset={dataset}", f"--model.name={__name__}:Curious"]) == 0
    assert "activations –" in capsys.readouterr().out


def test_two_networks_take_twice_the_time_and_the_memory(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The label-noise model trains a second network on every image; validated is the first alone."""
    found = stages(dataset, "--run.baselines=[bottom_up,label_noise]")
    one, two = found["baseline_bottom_up"], found["baseline_label_noise"]
    rates = parse_rates("pretrain=50,rank=100")
    assert seconds_of(one, rates, 1) == 10 * (75 * 40 / 50 + 100 / 100)
    assert seconds_of(two, rates, 1) == 10 * (2 * 75 * 40 / 50 + 100 / 100)
    arguments = ["plan", "--run.dir=x", f"--data.dataset={dataset}", "--model.name=resnet14", "--run.two_stage=false",
                 "--run.baselines=[bottom_up,label_noise]"]  # fmt: skip
    assert main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  baseline_")]
    activations = [float(line.split("activations ")[1].split(",")[0]) for line in lines]
    assert activations[1] == pytest.approx(2 * activations[0], abs=0.02) and activations[0] > 0.1


def test_hours_follow_from_the_rates(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stages(dataset)
    rates = parse_rates("train=50,rank=100")
    assert seconds_of(found["train"], rates, 2) == 7 * (12 * 64 / 50 + 100 / 100) / 2
    assert seconds_of(found["rank"], rates, 1) == 10 and seconds_of(found["pretrain"], rates, 1) is None
    arguments = ["plan", "--run.dir=x", f"--data.dataset={dataset}", "--model.name=mlp", "--nodes", "2", "--gpus", "4"]
    assert main([*arguments, "--images-per-second", "pretrain=1,train=1,rank=1"]) == 0
    said = capsys.readouterr().out
    seconds = (10 * (6 * 256 + 100) + 1000 + 100 * (3 * 256 + 100) + 2 * 150) / 8
    assert f"at most {seconds / 3600:.1f} hours in all" in said and "1,310" not in said
    assert "1,000 noisy_train, 60 clean_train, 100 val, 150 test; 3 classes" in said
    assert main([*arguments, "--images-per-second", "rank=1"]) == 0
    assert "--images-per-second pretrain=…,train=…\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpus", "7"], "pretrain.batch_size: a global batch of 256 does not divide among 7 processes; choose a "
                          "multiple of 7, 252 or 259 for instance; or start 1, 2, 4"),
        (["--gpus", "4", "--train.batch_size=36"], "train.batch_size: a global batch of 36 does not divide into a "
                          "labeled and an unlabeled half for each of 4 processes; choose a multiple of 8, 32 or 40 for "
                          "instance; or start 1, 2, 3, 6, 9, 18 processes"),
        (["--gpus", "2", "--runtime.micro_batch=48"], "runtime.micro_batch: 48 does not divide the 128 slots of a "
                          "global batch of 256 (pretrain.batch_size) that each of 2 process(es) takes; allowed: 1, 2"),
        (["--gpus", "0"], "--gpus 0: give 1 or more"),
        (["--kept", "1"], "--kept 1.0: give a share above 0 and below 1"),
        (["--images-per-second", "trian=3"], "did you mean 'train'"),
        (["--images-per-second", "train=-3"], "give a number above 0"),
        (["--train.batchsize=3"], "unknown option --train.batchsize"),
        (["--data.dataset=nowhere"], "nowhere is not a dataset"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(
    dataset: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["plan", "--run.dir=x", f"--data.dataset={dataset}", "--model.name=mlp", *more]) == 2
    assert message in capsys.readouterr().err
