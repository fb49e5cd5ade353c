"""The configuration: one dataclass per section; a YAML file and the command line fill it. Two of the sections are in
machine_config.py.

Precedence: command line, then the file, then the defaults here. Every field is explained in a string under it,
which is also what `--help` prints. A field that does nothing is a bug. This file imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from twostage.machine_config import LoaderConfig, RuntimeConfig
from twostage.rows import BaselineName


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lies, and what it consists of."""

    dir: Path
    """the run folder; running again in the same folder does only what is missing"""
    rng_seed: int = 0
    """every random number of the run follows from this one"""
    baselines: list[BaselineName] = field(default_factory=list)
    """trained for comparison by `run`: the other rows of the paper's Tables 3 and 4, by name, by the settings of
    `pretrain` and `train`; but only balanced_cross_entropy and improved_baseline are balanced, and a second stage by
    another method than train.method has its authors' weight; see rows.py"""
    two_stage: bool = True
    """whether `run` trains by the two-stage method; false: only what `baselines` and `finetune` say"""
    finetune: bool = False
    """whether `run` fine-tunes on the clean set at the end"""
    transition_mode: Literal["fixed", "faithful", "by_class"] = "fixed"
    """how the baselines `forward` and `backward` estimate the transition matrix: fixed: from anchors at the 97th
    percentile of all samples; faithful: with the error of its authors' code; by_class: at that of each class's own
    samples, for classes of very unequal size; see transition.py"""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples and which labels."""

    dataset: Path
    """a dataset made by `data_prep build`"""
    labels: str = "given"
    """label column that is trained on (the noisy labels)"""
    clean_labels: str | None = None
    """label column of the truth, where it is known; only reports, `evaluate` and clean splits read it"""
    train_split: str = "noisy_train"
    """split whose labels are noisy"""
    val_split: str = "val"
    """split for validation; not used when `holdout` is set"""
    holdout: float | None = None
    """share of `train_split`, class by class, that is kept out of training and used for validation instead"""
    test_split: str = "test"
    """split for the final figures; nothing is ever chosen by it. A dataset without a split `test` is not tested: then
    only the validation accuracy is told"""
    clean_split: str = "clean_train"
    """the clean set: a split whose labels are right; read by `mine.rule: clean_filter`, `finetune`, and the baselines
    pseudo_label_clean, bottom_up and label_noise"""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "resnet50"
    """alexnet, mlp, resnet14, resnet18, resnet50, `timm:NAME`, or your own as `package.module:factory`"""
    weights: str | None = None
    """what training begins with: a .pth or safetensors file; its URL, with the hash in its name or behind it as
    #sha256=HEX; imagenet: torchvision's for alexnet, resnet18 and resnet50, timm's for its networks; null: random"""
    class_layer: Literal["new", "loaded"] = "new"
    """with `weights`: new: a random one, theirs being for other classes; loaded: theirs, being for the same classes"""
    dropout: float = 0.0
    """probability; between the convolutions of each residual unit, after each hidden layer of the MLP, before those of
    AlexNet; timm's networks have places of their own for it"""
    input_noise: float = 0.0
    """standard deviation of Gaussian noise that is added to the normalised input while training"""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """From a decoded image to the network's input."""

    channels: Literal["rgb", "gray"] = "rgb"
    """what the decoder delivers"""
    resize: int | None = 256
    """the shorter side is resized to this many pixels first; null keeps the stored size"""
    size: int = 224
    """side of the square that the network sees, in pixels"""
    crop: Literal["random", "center"] = "random"
    """where the square is cut out while training; evaluation always takes the centre"""
    shift: int = 0
    """while training, the square is moved by up to this many pixels each way; what lies outside is black"""
    flip: bool = True
    """while training, half of the images are mirrored left to right"""
    mean: list[float] | Literal["image"] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """per channel, on the scale 0..1; subtracted. image: the mean image of the training view, pixel by pixel, as in the
    paper, section 4.1; computed once and kept in the run folder"""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """per channel, on the scale 0..1; divided by"""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer."""

    name: Literal["sgd", "adam", "adamw", "adagrad"] = "adam"
    """as in torch.optim"""
    lr: float = 3e-4
    """initial learning rate"""
    momentum: float | None = None
    """of SGD, or the first beta of Adam; null: 0.9; AdaGrad has none"""
    weight_decay: float = 0.0
    """L2 penalty (decoupled for adamw); not applied to biases and normalisation"""


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """What happens when the validation accuracy stands still."""

    factor: float = 0.5
    """the learning rate is multiplied by this"""
    patience: int = 10
    """after this many (sub-)epochs without a better validation accuracy"""
    min_lr: float = 1e-7
    """and never falls below this"""
    stop_after: int | None = None
    """training ends after this many (sub-)epochs without a better validation accuracy; null: never early"""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stage 1, first step: ordinary training on the noisy labels."""

    epochs: int = 10
    """passes over the view that is trained on: the training view, or the clean set where that is trained on"""
    batch_size: int = 256
    """of the global batch, over all processes"""
    balance: bool = True
    """over-sample the smaller classes so that all occur equally often (paper, section 3.3)"""
    select: Literal["best", "last"] = "best"
    """which weights are kept: the best by validation accuracy, or the last"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """see OptimizerConfig"""
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    """see PlateauConfig"""


@dataclass(frozen=True, kw_only=True)
class CleanFilterConfig(PretrainConfig):
    """Stage 1 with a clean set: one binary classifier per class, all of them one network (paper, section 3.1)."""

    positive_weight: float = 1.0
    """of a sample in the loss of its own class's classifier; above 1, more labels are accepted"""


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Stage 1, second step: the trained network scores every sample."""

    batch_size: int = 256
    """samples scored at once by one process"""


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Stage 1, third step: which labels are kept (paper, section 3.1)."""

    rule: Literal["agreement", "clean_filter"] = "agreement"
    """agreement: by the network trained on the noisy labels, as `min_score` and `min_share` say; clean_filter: by a
    classifier per class, trained on the clean set, as `accept_score` says"""
    min_score: float = 0.9
    """a label that agrees with the prediction is kept when its probability is at least this"""
    min_share: float = 0.1
    """at least this share of each class is kept, going down the ranking; only labels that agree with the prediction"""
    accept_score: float = 0.5
    """a label is kept when its class's classifier gives it at least this probability"""
    add_clean_set: bool = True
    """with `rule: clean_filter`: the clean set's own samples join the seed set, with their clean labels"""
    refine_val: bool = True
    """mine the validation samples in the same way, and validate stage 2 on them"""
    allow_empty: bool = False
    """go on when a class keeps no label at all"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Stage 2: semi-supervised training with the labels that stage 1 kept (paper, section 3.2)."""

    method: Literal["pi_model", "temporal_ensembling", "pseudo_label"] = "pi_model"
    """what is asked of unlabeled samples: pi_model: two augmentations agree; temporal_ensembling: the prediction agrees
    with those of earlier sub-epochs; pseudo_label: the prediction agrees with its own most likely class"""
    sub_epochs: int = 100
    """passes over the view that `pass_over` names; of the labeled one in the paper"""
    pass_over: Literal["labeled", "unlabeled", "larger"] = "labeled"
    """the view that a sub-epoch is one pass over; `larger`, of the two, suits small sets, where temporal ensembling
    wants every sample's prediction in each sub-epoch: of the larger view it has all, of the other nearly all"""
    batch_size: int = 256
    """N of the global batch, over all processes: half labeled, half unlabeled"""
    unlabeled: Literal["rest", "all"] = "rest"
    """what the unlabeled half is drawn from: the rest, whose labels stage 1 did not keep, as in the paper; or all, also
    those with a kept label, which is not used there: better where most labels are kept and the rest is a hard few"""
    balance_labeled: bool = True
    """over-sample the smaller classes of the seed set"""
    balance_unlabeled: bool = False
    """over-sample the unlabeled samples so that the classes of their noisy labels occur equally often"""
    init: Literal["stage1", "scratch"] = "stage1"
    """start from the weights of stage 1, as the paper does, or anew: from `model.weights`, or random ones"""
    consistency_weight: float = 100.0
    """α of equation 2: weight of the consistency loss (of the pseudo-labels' cross-entropy for pseudo_label)"""
    reduction: Literal["sum", "mean"] = "sum"
    """over the classes, in the consistency loss: the paper sums; temporal-ensembling code takes the mean"""
    dropout: float | None = None
    """in place of model.dropout, from stage 2 on; null: the same"""
    input_noise: float | None = None
    """in place of model.input_noise, from stage 2 on: the paper has noise in the semi-supervised network only"""
    ensemble_decay: float = 0.6
    """α of temporal ensembling: share of the earlier sub-epochs in the averaged predictions"""
    ramp_up: int = 0
    """sub-epochs over which the consistency weight rises, from 0.7 % of it (pseudo_label: 0); 0: constant, as in the
    paper on Clothing1M"""
    ramp_down: int = 0
    """last sub-epochs, over which the learning rate falls to almost 0: 2 at least to have an effect; 0: none. The paper
    speaks of a ramp-down of the cost; the work it has it from lowers the learning rate (and Adam's first moment too)"""
    select: Literal["best", "last"] = "best"
    """which weights are kept: the best by validation accuracy, or the last"""
    ema_decay: float | None = None
    """validate and keep a moving average of the weights with this decay, 0.999 for example; null: the weights as they
    are, as in the paper"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """see OptimizerConfig"""
    plateau: PlateauConfig = field(default_factory=lambda: PlateauConfig(stop_after=20))
    """see PlateauConfig"""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(PretrainConfig):
    """At the end: ordinary training on the clean set with a very small learning rate (paper, section 4.3)."""

    init: str = "train"
    """what is fine-tuned: a model of this run by its folder (train, pretrain, baseline_forward, ...), or the path of a
    model.safetensors of the same network and classes"""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    """see OptimizerConfig"""


@dataclass(frozen=True, kw_only=True)
class NoiseModelConfig(PretrainConfig):
    """The baselines bottom_up and label_noise: half of each batch is clean, half is noisy (paper, Table 4, rows 2, 3).

    An epoch is one pass over the noisy training view.
    """

    held_epochs: int = 1
    """of bottom_up: epochs before its noise layer learns anything but the identity"""
    penalty: Literal["trace", "squares"] = "trace"
    """of bottom_up: what pulls its noise layer away from the identity; see models/noise_layer.py"""
    penalty_weight: float = 0.01
    """of bottom_up: weight of the penalty in the loss"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run is made of."""

    run: RunConfig
    """see RunConfig"""
    data: DataConfig
    """see DataConfig"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """see ModelConfig"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """see AugmentConfig"""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """see LoaderConfig"""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """see PretrainConfig"""
    clean_filter: CleanFilterConfig = field(default_factory=CleanFilterConfig)
    """see CleanFilterConfig"""
    rank: RankConfig = field(default_factory=RankConfig)
    """see RankConfig"""
    mine: MineConfig = field(default_factory=MineConfig)
    """see MineConfig"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """see TrainConfig"""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """see FinetuneConfig"""
    noise_model: NoiseModelConfig = field(default_factory=NoiseModelConfig)
    """see NoiseModelConfig"""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """see RuntimeConfig"""
