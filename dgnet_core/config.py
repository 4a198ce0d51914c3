"""The whole configuration of DG-Net: frozen dataclasses, a docstring per field, checked when built."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

GanType = Literal["lsgan", "nsgan"]
SoftLabel = Literal["dynamic", "pseudo", "appearance", "uniform", "two_label", "none"]
FeatureChoice = Literal["both", "prim", "fine"]
Precision = Literal["float32", "bfloat16", "float64"]


def _check(ok: bool, section: object, name: str, remedy: str) -> None:
    """Raise a ValueError that names `section.name`, its value and what would be accepted."""
    if not ok:
        raise ValueError(f"{type(section).__name__}.{name} = {getattr(section, name)!r}: {remedy}")


def _check_choices(section: object, **choices: object) -> None:
    for name, options in choices.items():
        allowed = get_args(options)
        _check(getattr(section, name) in allowed, section, name, f"choose one of {', '.join(allowed)}")


def _check_positive(section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        _check(value > 0 and math.isfinite(value), section, name, "must be positive and finite")


def _check_weight(section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        _check(value >= 0 and math.isfinite(value), section, name, "a weight is a finite number >= 0")


def _check_milestones(section: Any) -> None:
    ordered = list(section.milestones) == sorted(set(section.milestones)) and min(section.milestones, default=1) > 0
    _check(ordered, section, "milestones", "iterations > 0 in rising order")


def _check_run(run: Any) -> None:
    _check(run.num_classes >= 2, run, "num_classes", "re-id needs at least 2 identities")
    _check(0 <= run.seed < 2**63, run, "seed", "an integer in [0, 2^63)")
    _check(run.iterations >= 1, run, "iterations", "at least 1")
    _check(run.batch_size >= 2, run, "batch_size", "BatchNorm needs a batch of at least 2 on every rank")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the networks; the defaults are the paper's (its section 3.1 and supplement)."""

    height: int = 256
    """Image height in pixels, a multiple of 4."""
    width: int = 128
    """Image width in pixels, a multiple of 4."""
    appearance_layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks per stage of the appearance encoder and the teacher; (3, 4, 6, 3) is ResNet-50."""
    appearance_width: int = 64
    """Channels after the first convolution; the appearance code has 32 x as many (2048)."""
    bottleneck: int = 512
    """Width of f_prim and of f_fine."""
    pretrained: str = "imagenet"
    """What the appearance encoder's ResNet starts from: "imagenet" (downloaded by torchvision into TORCH_HOME), the
    path of a torchvision file, or "none"."""
    prim_dropout: float = 0.5
    """Dropout before the classifier of the primary feature."""
    fine_dropout: float = 0.75
    """Dropout before the classifier of the fine-grained feature."""
    structure_width: int = 16
    """Channels after the first convolution of the structure encoder; the structure code has 8 x as many (128)."""
    aspp_dilations: tuple[int, int, int] = (3, 6, 9)
    """Dilations of the three dilated branches that end the structure encoder."""
    residual_blocks: int = 4
    """Residual blocks in the structure encoder and in each scale of the discriminator."""
    adain_width: int = 512
    """Hidden width of the MLPs that turn the appearance code into AdaIN scales and biases."""
    discriminator_width: int = 32
    """Channels after the first convolution of the discriminator."""
    discriminator_scales: int = 3
    """Image scales the discriminator looks at, each half as large as the one before."""

    def __post_init__(self) -> None:
        # Reflect padding must stay inside the structure code and the discriminator's smallest feature map.
        smallest = max(4 * (max(self.aspp_dilations) + 1), 2 ** (self.discriminator_scales + 1) + 1)
        for name in ("height", "width"):
            value = getattr(self, name)
            lower, upper = value - value % 4, value + -value % 4
            _check(value % 4 == 0, self, name, f"the decoder restores multiples of 4 only: {lower} or {upper}")
            _check(
                value >= smallest,
                self,
                name,
                f"aspp_dilations {self.aspp_dilations} and discriminator_scales {self.discriminator_scales} need"
                f" at least {smallest}: use larger images, smaller dilations or fewer scales",
            )
        _check_positive(
            self, "appearance_width", "bottleneck", "structure_width", "residual_blocks", "adain_width",
            "discriminator_width", "discriminator_scales",
        )  # fmt: skip
        for name in ("appearance_layers", "aspp_dilations"):
            _check(min(getattr(self, name)) > 0, self, name, "every entry must be at least 1")
        for name in ("prim_dropout", "fine_dropout"):
            _check(0 <= getattr(self, name) < 1, self, name, "a probability in [0, 1)")

    @property
    def appearance_channels(self) -> int:
        """Channels of the appearance code (2048 in the paper)."""
        return 32 * self.appearance_width

    @property
    def structure_channels(self) -> int:
        """Channels of the structure code (128 in the paper)."""
        return 8 * self.structure_width


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """When a group of weights leaves zero and how fast it grows (paper, section 3.3: 30K iterations, then 4K)."""

    start: int = 30_000
    """The last iteration at which the weights are still exactly 0."""
    slope: float = 0.0005
    """Growth per iteration; a weight of maximum m is at its maximum m / slope iterations after `start`."""

    def __post_init__(self) -> None:
        _check(self.start >= 0, self, "start", "an iteration, >= 0")
        remedy = "must be positive and finite: an infinite slope is a ramp of zero length, 0 never leaves zero"
        _check(self.slope > 0 and math.isfinite(self.slope), self, "slope", remedy)

    def end(self, maximum: float) -> int:
        """First iteration at which a weight of this maximum has stopped growing."""
        return self.start + math.ceil(maximum / self.slope)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms; ramped ones state their maximum (paper, section 3.3; release)."""

    image: float = 5.0
    """lambda_img: reconstruction of the image from its own and from a positive's appearance (Eq. 1, 2)."""
    identity: float = 1.0
    """Cross-entropy of f_prim on the real images (Eq. 3)."""
    positive_identity: float = 1.0
    """The same on the positives (Eq. 3, on x_t)."""
    generated_identity: float = 0.5
    """lambda_id: cross-entropy of f_prim on generated images against the appearance owner (Eq. 6)."""
    adversarial: float = 1.0
    """Adversarial term (Eq. 7)."""
    gradient_penalty: float = 0.01
    """Weight of the discriminator's squared gradient norm at real images."""
    appearance_code: float = 1.0
    """Maximum weight of the appearance code's reconstruction (Eq. 4)."""
    structure_code: float = 1.0
    """Maximum weight of the structure code's reconstruction (Eq. 5)."""
    cycle: float = 2.0
    """Maximum weight of the cycle reconstruction (in the release, not in the paper)."""
    prim: float = 2.0
    """lambda_prim: maximum weight of primary feature learning on generated images (Eq. 8)."""
    alpha: float = 0.2
    """lambda_fine / lambda_prim: share of fine-grained feature mining (Eq. 9)."""
    code_warmup: Warmup = field(default_factory=Warmup)
    """Warm-up of the code and cycle terms."""
    teacher_warmup: Warmup = field(default_factory=Warmup)
    """Warm-up of L_prim and L_fine, the terms that feed generated images back to the re-id heads."""

    def __post_init__(self) -> None:
        _check_weight(self, *(f.name for f in fields(self) if f.type is float))


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Switches between the release's behaviour (the defaults), the paper's, and the paper's ablations."""

    detach_appearance: bool = True
    """Detach the appearance code before the decoder and the losses on it (release); False: the paper's equations, but
    that the target of L_code2 stays detached."""
    reencode_probability: float = 0.5
    """Chance that the structure encoder *learns* from reading a generated image back instead of being held fixed."""
    gan: GanType = "lsgan"
    """Least-squares or non-saturating adversarial loss. The gradient penalty is added to both, with its own weight,
    where the release has it with least squares only."""
    soft_label: SoftLabel = "dynamic"
    """Target of L_prim: the teacher's smoothed output, its hard pseudo label, the appearance owner's label, the
    uniform distribution (LSRO), half appearance and half structure owner (the release instead shares one between them
    as its teacher does), or no L_prim at all."""
    features: FeatureChoice = "both"
    """Which feature learns from generated images: f_prim by L_prim, f_fine by L_fine (paper, Table 4)."""
    online_feeding: bool = True
    """False: generated images never feed the re-id heads (ablation; no L_prim and no L_fine)."""

    def __post_init__(self) -> None:
        _check_choices(self, gan=GanType, soft_label=SoftLabel, features=FeatureChoice)
        _check(0 <= self.reencode_probability <= 1, self, "reencode_probability", "a probability in [0, 1]")

    @property
    def feeds_prim(self) -> bool:
        """Whether L_prim (Eq. 8) is part of this recipe."""
        return self.online_feeding and self.features != "fine" and self.soft_label != "none"

    @property
    def feeds_fine(self) -> bool:
        """Whether L_fine (Eq. 9) is part of this recipe."""
        return self.online_feeding and self.features != "prim"

    @property
    def needs_teacher(self) -> bool:
        """Whether L_prim asks a teacher for its labels."""
        return self.feeds_prim and self.soft_label in ("dynamic", "pseudo")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisers and learning rates (release; the paper states the same)."""

    appearance_lr: float = 0.002
    """SGD on the trunk of the appearance encoder."""
    head_lr_factor: float = 10.0
    """The two heads learn this many times faster than the trunk."""
    momentum: float = 0.9
    """Nesterov momentum of that SGD."""
    generator_lr: float = 1e-4
    """Adam on structure encoder and decoder."""
    discriminator_lr: float = 1e-4
    """Adam on the discriminator."""
    adam_betas: tuple[float, float] = (0.0, 0.999)
    """Betas of both Adams."""
    weight_decay: float = 5e-4
    """L2 decay of every parameter."""
    milestones: tuple[int, ...] = (60_000, 90_000, 105_000)
    """The first iterations (counted from 1) of a lower rate: each multiplies all learning rates by `decay`."""
    decay: float = 0.1
    """Factor at a milestone."""
    clip_norm: float | None = None
    """Largest L2 norm of each optimiser's gradient; None: no clipping."""

    def __post_init__(self) -> None:
        _check_positive(self, "appearance_lr", "head_lr_factor", "generator_lr", "discriminator_lr", "decay")
        _check_weight(self, "momentum", "weight_decay")
        _check_milestones(self)
        _check(all(0 <= b < 1 for b in self.adam_betas), self, "adam_betas", "two numbers in [0, 1)")
        object.__setattr__(self, "adam_betas", tuple(float(b) for b in self.adam_betas))  # Adam refuses an int 0
        if self.clip_norm is not None:
            _check_positive(self, "clip_norm")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training images (release)."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    pad: int = 10
    """Edge padding in pixels before the random crop back to the image size; 0: no crop."""
    erase: float = 0.5
    """Probability of random erasing, on the copies that feed the identity losses only."""
    erase_area: tuple[float, float] = (0.02, 0.4)
    """Erased share of the image, from and to."""
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    """Height to width of the erased rectangle, from and to."""

    def __post_init__(self) -> None:
        for name in ("flip", "erase"):
            _check(0 <= getattr(self, name) <= 1, self, name, "a probability in [0, 1]")
        _check(self.pad >= 0, self, "pad", "pixels, >= 0")
        low, high = self.erase_area
        _check(0 < low <= high < 1, self, "erase_area", "(from, to) with 0 < from <= to < 1")
        low, high = self.erase_aspect
        _check(0 < low <= high < math.inf, self, "erase_aspect", "(from, to) with 0 < from <= to")


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How the step is computed; none of it changes what is learned beyond rounding."""

    precision: Precision = "float32"
    """float32; bfloat16: networks in autocast, losses, statistics of norms and gradient penalty in float32; float64."""
    channels_last: bool = True
    """Keep images as N x H x W x C in memory."""
    compile: bool = False
    """Compile the networks with torch.compile (a minute or more at the first iterations)."""

    def __post_init__(self) -> None:
        _check_choices(self, precision=Precision)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """The divergence watch over the identity loss on real images."""

    factor: float = 3.0
    """Report when the loss's fast running mean rises above this multiple of its slow one."""
    floor: float = 0.1
    """Running levels below this (in nats) count as this: a loss near zero may double without harm."""
    fast: float = 0.9
    """Decay of the fast running mean (0.9: about ten iterations)."""
    slow: float = 0.999
    """Decay of the slow running mean (0.999: about a thousand iterations)."""

    def __post_init__(self) -> None:
        _check(self.factor > 1, self, "factor", "a multiple > 1")
        _check_positive(self, "floor")
        _check(0 <= self.fast < self.slow < 1, self, "fast", "needs 0 <= fast < slow < 1")


@dataclass(frozen=True, kw_only=True)
class DGNetConfig:
    """One DG-Net run: the networks, the losses and every length that scales with the schedule."""

    num_classes: int
    """Identities in the training set (Market-1501: 751)."""
    seed: int = 0
    """Every draw of the run is a function of this, the iteration and the position in the batch."""
    iterations: int = 100_000
    """Length of the run."""
    batch_size: int = 8
    """Images in batch a, and as many in b and in each one's positives, over all ranks."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Sizes of the networks."""
    trunk_from_teacher: bool = False
    """Start the appearance encoder's ResNet from the trained teacher's instead of what `network.pretrained` names: for
    sizes that have no ImageNet weights, from which the paper starts both."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss weights and their warm-up."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Switches between release, paper and ablations."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimisers."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    step: StepConfig = field(default_factory=StepConfig)
    """Precision and memory format."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Divergence watch."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a run starts from a trained teacher, or asks it for labels."""
        return self.trunk_from_teacher or self.recipe.needs_teacher

    def __post_init__(self) -> None:
        _check_run(self)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One run of the teacher, the usual re-id baseline; the defaults are those of `paper_teacher` on Market-1501."""

    num_classes: int
    """Identities in the training set, the same as DG-Net's."""
    seed: int = 0
    """Every draw of the run is a function of this, the iteration and the position in the batch."""
    iterations: int = 24_255
    """Length of the run (60 epochs)."""
    batch_size: int = 32
    """Images in a batch, over all ranks."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Image size, ResNet, bottleneck and what it starts from; all else in it is DG-Net's."""
    dropout: float = 0.5
    """Dropout before the classifier."""
    label_smoothing: float = 0.0
    """Share of each label's weight that is spread evenly over all identities."""
    lr: float = 0.005
    """SGD on the trunk."""
    head_lr_factor: float = 10.0
    """The head learns this many times faster than the trunk."""
    momentum: float = 0.9
    """Nesterov momentum of that SGD."""
    weight_decay: float = 5e-4
    """L2 decay of every parameter."""
    warmup_iterations: int = 2_021
    """The learning rates rise from a tenth in so many iterations (5 epochs); 0: no warm-up."""
    milestones: tuple[int, ...] = (16_170,)
    """The first iterations (counted from 1) of a lower rate: each multiplies all learning rates by `decay`
    (40 epochs)."""
    decay: float = 0.1
    """Factor at a milestone."""
    clip_norm: float | None = None
    """Largest L2 norm of the gradient; None: no clipping."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    step: StepConfig = field(default_factory=StepConfig)
    """Precision and memory format."""

    def __post_init__(self) -> None:
        _check_run(self)
        _check(0 <= self.dropout < 1, self, "dropout", "a probability in [0, 1)")
        _check(0 <= self.label_smoothing < 1, self, "label_smoothing", "a share in [0, 1)")
        _check_positive(self, "lr", "head_lr_factor", "decay")
        _check_weight(self, "momentum", "weight_decay")
        _check(self.warmup_iterations >= 0, self, "warmup_iterations", "iterations, >= 0")
        _check_milestones(self)
        if self.clip_norm is not None:
            _check_positive(self, "clip_norm")


AnyConfig = TypeVar("AnyConfig", DGNetConfig, TeacherConfig)


def rescaled(config: AnyConfig, iterations: int) -> AnyConfig:
    """The same run at another length: warm-ups, ramps and milestones keep their share of it.

    Args:
        config: the run.
        iterations: its new length.

    Raises:
        ValueError: it is not at least 1.
    """
    config, factor = replace(config, iterations=iterations), iterations / config.iterations

    def milestones(old: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted({max(1, round(factor * milestone)) for milestone in old}))

    def warmup(old: Warmup) -> Warmup:
        return Warmup(start=round(factor * old.start), slope=old.slope / factor)

    if isinstance(config, TeacherConfig):
        return replace(
            config,
            warmup_iterations=round(factor * config.warmup_iterations),
            milestones=milestones(config.milestones),
        )
    loss = config.loss
    return replace(
        config,
        loss=replace(loss, code_warmup=warmup(loss.code_warmup), teacher_warmup=warmup(loss.teacher_warmup)),
        optim=replace(config.optim, milestones=milestones(config.optim.milestones)),
    )


# ----------------------------------------------------------------------------------------------------------------
# Presets


def paper(num_classes: int, **overrides: object) -> DGNetConfig:
    """The paper's and the release's setting: ResNet-50, 256 x 128, batch 8, 100K iterations, warm-up at 30K.

    Args:
        num_classes: identities in the training set.
        overrides: top-level fields of DGNetConfig to replace.
    """
    return DGNetConfig(num_classes=num_classes, **overrides)  # pyright: ignore[reportArgumentType]


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


def laptop(num_classes: int, *, iterations: int = 1_000, **overrides: object) -> DGNetConfig:
    """Small networks and pictures for two CPU cores: the same code and a schedule of `iterations`.

    As in the paper the warm-up takes the first 30 % of the run and the ramp to lambda_prim 4 %. A run so short has no
    time to lose: milestones stand at 80 % and 95 % (paper: 60 % and 90 %), generator and discriminator learn ten times
    faster, and the appearance encoder starts from the teacher's trunk, which the paper's finds in ImageNet weights.

    Args:
        num_classes: identities in the training set.
        iterations: length of the run, all other lengths follow from it.
        overrides: top-level fields of DGNetConfig to replace.
    """
    warmup = Warmup(start=300, slope=0.05)
    preset = DGNetConfig(
        num_classes=num_classes,
        iterations=1_000,
        network=_laptop_network(),
        trunk_from_teacher=True,
        loss=LossConfig(code_warmup=warmup, teacher_warmup=warmup),
        optim=OptimConfig(generator_lr=1e-3, discriminator_lr=1e-3, milestones=(800, 950)),
        augment=AugmentConfig(pad=3),
    )
    return replace(rescaled(preset, iterations), **overrides)


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
    network, augment = _laptop_network(), AugmentConfig(pad=3)
    preset = paper_teacher(num_classes, images, network=network, augment=augment, lr=0.015)
    length = max(1, round(preset.iterations / 2)) if iterations is None else iterations
    return replace(rescaled(preset, length), **overrides)


def _laptop_network() -> NetworkConfig:
    return NetworkConfig(
        height=64,
        width=32,
        appearance_layers=(1, 1, 1, 1),
        appearance_width=16,
        bottleneck=128,
        pretrained="none",
        structure_width=6,
        aspp_dilations=(1, 2, 3),
        residual_blocks=2,
        adain_width=64,
        discriminator_width=12,
        discriminator_scales=2,
    )
