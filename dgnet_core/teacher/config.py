"""The teacher's configuration and its presets."""

from dataclasses import dataclass, field, replace
from typing import Self

from dgnet_core.checks import check, check_positive, check_weight
from dgnet_core.learning.config import (
    AugmentConfig,
    DescriptorConfig,
    MetricConfig,
    OptimizerKind,
    check_rates,
    rescaled_lengths,
)
from dgnet_core.networks.config import NetworkConfig, laptop_network


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(DescriptorConfig):
    """One run of the teacher, the usual re-id baseline; the defaults are those of `paper_teacher` on Market-1501."""

    iterations: int = 24_255
    """Length of the run (Market-1501: 60 epochs)."""
    batch_size: int = 32
    """Images in a batch, over all ranks."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Sizes of the networks."""
    dropout: float = 0.5
    """Dropout before the classifier."""
    label_smoothing: float = 0.0
    """Share of each label's weight that is spread evenly over all identities (arXiv 1512.00567; 0.1 in BoT, arXiv
    1903.07071)."""
    last_stride: int = 2
    """Stride of the ResNet's last stage; 1 keeps its feature map twice as high and wide (BoT)."""
    optimizer: OptimizerKind = "sgd"
    """SGD with Nesterov momentum, Adam with L2 decay (BoT), or AdamW with decoupled decay."""
    lr: float = 0.005
    """Learning rate of the trunk."""
    head_lr_factor: float = 10.0
    """The head learns this many times faster than the trunk."""
    momentum: float = 0.9
    """Nesterov momentum of SGD; Adam's first beta."""
    weight_decay: float = 5e-4
    """L2 decay of every parameter."""
    warmup_iterations: int = 2_021
    """The learning rates rise from a tenth in so many iterations (Market-1501: 5 epochs); 0: no warm-up."""
    milestones: tuple[int, ...] = (16_170,)
    """The first iterations (counted from 1) of a lower rate: each multiplies all learning rates by `decay`
    (Market-1501: 40 epochs)."""
    decay: float = 0.1
    """Factor at a milestone."""
    cosine_end: int | None = None
    """In place of milestones, learning rates fall along half a cosine from the warm-up's end to 0 at this iteration
    (arXiv 1608.03983); None: milestones."""
    clip_norm: float | None = None
    """Largest L2 norm of the gradient; None: no clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.dropout < 1, self, "dropout", "a probability in [0, 1)")
        check(0 <= self.label_smoothing < 1, self, "label_smoothing", "a share in [0, 1)")
        check_positive(self, "lr", "head_lr_factor", "decay")
        check_weight(self, "momentum", "weight_decay")
        check(self.last_stride in (1, 2), self, "last_stride", "1 or 2")
        check_rates(self)
        if self.clip_norm is not None:
            check_positive(self, "clip_norm")

    def rescaled(self, iterations: int) -> Self:
        """The same run at another length: warm-up and milestones keep their share of it.

        Raises:
            ValueError: the length is not at least 1.
        """
        factor = iterations / self.iterations
        return replace(super().rescaled(iterations), **rescaled_lengths(self, factor))


def paper_teacher(num_classes: int, images: int, **overrides: object) -> TeacherConfig:
    """The usual re-id baseline: ResNet-50, 256 x 128, 60 epochs of batch 32, warm-up in 5, a tenth of the rate from 40.

    Args:
        num_classes: identities in the training set.
        images: pictures in the training set, which make an epoch.
        overrides: top-level fields of TeacherConfig to replace; another batch size changes the epoch's length.
    """
    batch_size = overrides.get("batch_size", TeacherConfig.batch_size)
    epoch = images / batch_size  # pyright: ignore[reportOperatorIssue]
    lengths: dict[str, object] = {
        "iterations": max(1, round(60 * epoch)),
        "warmup_iterations": round(5 * epoch),
        "milestones": (max(1, round(40 * epoch)),),
    }
    return TeacherConfig(num_classes=num_classes, **(lengths | overrides))  # pyright: ignore[reportArgumentType]


def laptop_teacher(
    num_classes: int, images: int, *, iterations: int | None = None, **overrides: object
) -> TeacherConfig:
    """The teacher of `laptop`: its network and pictures, and `paper_teacher`'s schedule scaled to `iterations`.

    It starts from random weights, and learns three times faster than one that starts from ImageNet's.

    Args:
        num_classes: identities in the training set.
        images: pictures in the training set.
        iterations: length of the run, all other lengths follow from it; None: 30 epochs.
        overrides: top-level fields of TeacherConfig to replace.
    """
    network, augment = laptop_network(), AugmentConfig(pad=3)
    preset = paper_teacher(num_classes, images, network=network, augment=augment, lr=0.015)
    length = max(1, round(preset.iterations / 2)) if iterations is None else iterations
    return replace(preset.rescaled(length), **overrides)


def strong_teacher(num_classes: int, images: int, **overrides: object) -> TeacherConfig:
    """A strong baseline of the same ResNet-50: BoT's tricks (arXiv 1903.07071), AGW's pooling (arXiv 2001.04193), EMA.

    256 x 128, 120 epochs of 16 x 4 images; Adam at 3.5e-4, warm-up in 10 epochs, then a cosine instead of BoT's
    milestones, as fast-reid's strong baselines have it.

    Args:
        num_classes: identities in the training set.
        images: pictures in the training set, which make an epoch.
        overrides: top-level fields of TeacherConfig to replace; another batch size changes the epoch's length.
    """
    batch_size = overrides.get("batch_size", 64)
    preset = paper_teacher(num_classes, images, batch_size=batch_size)
    epoch = images / batch_size  # pyright: ignore[reportOperatorIssue]
    preset = replace(_strengthened(preset, max(1, round(120 * epoch)), round(10 * epoch)), lr=3.5e-4, ema=0.999)
    return replace(preset, **overrides)


def strong_laptop_teacher(
    num_classes: int, images: int, *, iterations: int | None = None, **overrides: object
) -> TeacherConfig:
    """The teacher of `strong_laptop`: `laptop_teacher`, whose arguments these are, with the settings of
    `strong_teacher` and 8 x 4 images a batch."""
    preset = laptop_teacher(num_classes, images, iterations=iterations)
    preset = replace(_strengthened(preset, preset.iterations, preset.warmup_iterations), lr=1e-3, ema=0.99)
    return replace(preset, **overrides)


def _strengthened(config: TeacherConfig, iterations: int, warmup_iterations: int) -> TeacherConfig:
    return replace(
        config,
        iterations=iterations,
        instances=4,
        network=replace(config.network, pooling="gem", neck="bnneck", bottleneck=0),
        metric=MetricConfig(triplet=1.0),
        dropout=0.0,
        label_smoothing=0.1,
        last_stride=1,
        optimizer="adam",
        head_lr_factor=1.0,
        warmup_iterations=warmup_iterations,
        cosine_end=max(warmup_iterations + 1, iterations),
    )
