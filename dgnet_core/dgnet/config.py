"""DG-Net's configuration and its presets: frozen dataclasses, a docstring per field, checked when built."""

from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self

from dgnet_core.checks import check, check_choices, check_positive, check_weight
from dgnet_core.learning.config import (
    AugmentConfig,
    DescriptorConfig,
    GanType,
    MetricConfig,
    OptimizerKind,
    Warmup,
    check_rates,
    rescaled_lengths,
)
from dgnet_core.networks.config import NetworkConfig, laptop_network

SoftLabel = Literal["dynamic", "pseudo", "appearance", "uniform", "two_label", "owners", "none"]
FeatureChoice = Literal["both", "prim", "fine"]
Confidence = Literal["all", "filter", "weight"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms; ramped ones state their maximum (paper, section 3.3; release)."""

    image: float = 5.0
    """lambda_img: reconstruction of the image from its own and from a positive's appearance (Eq. 1, 2)."""
    identity: float = 1.0
    """Cross-entropy of f_prim on the real images (Eq. 3)."""
    positive_identity: float = 1.0
    """The same on the positives (Eq. 3, on x_t)."""
    label_smoothing: float = 0.0
    """Share of each real image's label that is spread evenly over all identities, in f_prim's and f_fine's
    cross-entropy (arXiv 1512.00567; 0.1 in BoT, arXiv 1903.07071)."""
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
        check_weight(self, *(f.name for f in fields(self) if f.type is float))
        check(self.label_smoothing < 1, self, "label_smoothing", "a share in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Switches between the release's behaviour (the defaults), the paper's, and the paper's ablations."""

    detach_appearance: bool = True
    """Detach the appearance code before the decoder and the losses on it (release); False: the paper's equations, but
    that the target of L_code2 stays detached."""
    code_teaches_decoder: bool = False
    """Where the appearance code is detached, L_code1 (Eq. 4) and the cycle teach the decoder all the same, through a
    fixed appearance encoder: generated images must show what their code says. False: L_code1 teaches nothing
    (release)."""
    structure_negatives: bool = False
    """The structure encoder reads half of the training images as negatives (-gray), at random: what is light and what
    dark then says nothing about the clothes, and the decoder must ask the appearance code."""
    reencode_probability: float = 0.5
    """Chance that the structure encoder *learns* from reading a generated image back instead of being held fixed."""
    gan: GanType = "lsgan"
    """Least-squares or non-saturating adversarial loss. The gradient penalty is added to both, with its own weight,
    where the release has it with least squares only."""
    soft_label: SoftLabel = "dynamic"
    """Target of L_prim: the teacher's smoothed output, its hard pseudo label, the appearance owner's label, the
    uniform distribution (LSRO), half appearance and half structure owner, the teacher's output for these two owners
    alone, scaled to sum 1 (the release's two labels), or no L_prim at all."""
    teacher_dropout: bool = False
    """The teacher drops features while it labels, as the release's does from its first pictures at iteration 5,000
    on; each image and its mirror image have draws of their own."""
    release_statistics: bool = False
    """BatchNorm's running statistics in the appearance encoder follow the clean, the erased and the generated images,
    in this order, as in the release; False: only those that the identity losses see."""
    features: FeatureChoice = "both"
    """Which feature learns from generated images: f_prim by L_prim, f_fine by L_fine (paper, Table 4)."""
    online_feeding: bool = True
    """False: generated images never feed the re-id heads (ablation; no L_prim and no L_fine)."""

    def __post_init__(self) -> None:
        check_choices(self, gan=GanType, soft_label=SoftLabel, features=FeatureChoice)
        check(0 <= self.reencode_probability <= 1, self, "reencode_probability", "a probability in [0, 1]")

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
        return self.feeds_prim and self.soft_label in ("dynamic", "pseudo", "owners")


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """Which generated pictures feed the re-id heads, by L_prim and L_fine: nothing before the warm-up starts."""

    confidence: Confidence = "all"
    """What the teacher's confidence, its largest probability, decides of a generated picture: all, nothing; filter,
    those below `least_confidence` do not feed; weight, it multiplies the picture's losses."""
    least_confidence: float = 0.5
    """Of the filter."""
    pictures: int = 1
    """Generated pictures of each structure that feed: 1, with the other batch's appearance; 2, also with that of its
    positive. The losses are the mean over both."""
    share: float = 1.0
    """Chance of each generated picture to feed when the warm-up starts: generated to real pictures are 1 : 2 times as
    much (1 : 1 with two pictures). The losses of those that do not feed count as 0."""
    last_share: float = 1.0
    """The same at the run's end; it changes in a straight line."""

    def __post_init__(self) -> None:
        check_choices(self, confidence=Confidence)
        check(self.pictures in (1, 2), self, "pictures", "1 or 2")
        for name in ("least_confidence", "share", "last_share"):
            check(0 <= getattr(self, name) <= 1, self, name, "a number in [0, 1]")

    @property
    def selects(self) -> bool:
        """Whether chance decides which pictures feed, at any iteration."""
        return min(self.share, self.last_share) < 1


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisers and learning rates (release; the paper states the same)."""

    appearance_lr: float = 0.002
    """Learning rate of the appearance encoder's trunk."""
    optimizer: OptimizerKind = "sgd"
    """Of the appearance encoder: SGD with Nesterov momentum, Adam with L2 decay, or AdamW with decoupled decay."""
    head_lr_factor: float = 10.0
    """The two heads learn this many times faster than the trunk."""
    momentum: float = 0.9
    """Nesterov momentum of SGD; Adam's first beta."""
    generator_lr: float = 1e-4
    """Adam on structure encoder and decoder."""
    discriminator_lr: float = 1e-4
    """Adam on the discriminator."""
    adam_betas: tuple[float, float] = (0.0, 0.999)
    """Betas of the generator's and the discriminator's Adam."""
    weight_decay: float = 5e-4
    """L2 decay of every parameter."""
    warmup_iterations: int = 0
    """The appearance encoder's rates rise from a tenth in so many iterations; 0: no warm-up."""
    milestones: tuple[int, ...] = (60_000, 90_000, 105_000)
    """The first iterations (counted from 1) of a lower rate: each multiplies all learning rates by `decay`."""
    decay: float = 0.1
    """Factor at a milestone."""
    cosine_end: int | None = None
    """In place of milestones, all learning rates fall along half a cosine from the warm-up's end to 0 at this iteration
    (arXiv 1608.03983); None: milestones."""
    clip_norm: float | None = None
    """Largest L2 norm of each optimiser's gradient; None: no clipping."""

    def __post_init__(self) -> None:
        check_positive(self, "appearance_lr", "head_lr_factor", "generator_lr", "discriminator_lr", "decay")
        check_weight(self, "momentum", "weight_decay")
        check_rates(self)
        check(all(0 <= b < 1 for b in self.adam_betas), self, "adam_betas", "two numbers in [0, 1)")
        object.__setattr__(self, "adam_betas", tuple(float(b) for b in self.adam_betas))  # Adam refuses an int 0
        if self.clip_norm is not None:
            check_positive(self, "clip_norm")


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
        check(self.factor > 1, self, "factor", "a multiple > 1")
        check_positive(self, "floor")
        check(0 <= self.fast < self.slow < 1, self, "fast", "needs 0 <= fast < slow < 1")


@dataclass(frozen=True, kw_only=True)
class DGNetConfig(DescriptorConfig):
    """One DG-Net run: the networks, the losses and every length that scales with the schedule."""

    batch_size: int = 8
    """Images in batch a, and as many in b and in each one's positives, over all ranks."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Sizes of the networks."""
    trunk_from_teacher: bool = False
    """Start the appearance encoder's ResNet from the trained teacher's instead of what `network.pretrained` names: for
    sizes that have no ImageNet weights, from which the paper starts both."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss weights and their warm-up."""
    beta: float = 0.5
    """Weight of f_fine beside f_prim when people are compared (paper: 0.5); training does not know it."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Switches between release, paper and ablations."""
    feed: FeedConfig = field(default_factory=FeedConfig)
    """Which generated pictures feed the re-id heads."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimisers."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Divergence watch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self, "beta")
        remedy = "network.bottleneck = 0 would make one feature of f_prim and f_fine: use 1 or more"
        check(self.network.bottleneck > 0, self, "network", remedy)

    @property
    def needs_teacher(self) -> bool:
        """Whether a run starts from a trained teacher, or asks it for labels."""
        return self.trunk_from_teacher or self.asks_teacher

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher is asked about generated pictures: for labels, or its confidence."""
        fed = self.recipe.feeds_prim or self.recipe.feeds_fine
        return self.recipe.needs_teacher or (fed and self.feed.confidence != "all")

    def rescaled(self, iterations: int) -> Self:
        """The same run at another length: warm-ups, ramps and milestones keep their share of it.

        Raises:
            ValueError: the length is not at least 1.
        """
        factor, loss = iterations / self.iterations, self.loss
        return replace(
            super().rescaled(iterations),
            loss=replace(
                loss,
                code_warmup=loss.code_warmup.rescaled(factor),
                teacher_warmup=loss.teacher_warmup.rescaled(factor),
            ),
            optim=replace(self.optim, **rescaled_lengths(self.optim, factor)),
        )


def check_learns(config: DGNetConfig) -> None:
    """Refuse a recipe in which the appearance encoder has no gradient before the warm-up.

    The paper's ablation without identity losses is by its equations, in which codes are not detached.

    Raises:
        ValueError: names the fields and the remedies.
    """
    learns = config.loss.identity or config.loss.positive_identity or config.metric.acts
    if config.recipe.detach_appearance and not learns:
        raise ValueError(
            "model.loss.identity and model.loss.positive_identity are 0: with detached codes the appearance encoder"
            " would learn nothing before the warm-up: pass --model.recipe.no-detach-appearance, or give one a weight"
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


def release(num_classes: int, **overrides: object) -> DGNetConfig:
    """`paper` as the authors' release really runs.

    Its teacher drops features while it labels, its running statistics mix clean, erased and generated images, and its
    bottlenecks start from other weights; the teacher's configuration needs the same `network.release_bottleneck`.

    Args:
        num_classes: identities in the training set.
        overrides: top-level fields of DGNetConfig to replace.
    """
    preset = paper(
        num_classes,
        network=NetworkConfig(release_bottleneck=True),
        recipe=RecipeConfig(teacher_dropout=True, release_statistics=True),
    )
    return replace(preset, **overrides)


def laptop(num_classes: int, *, iterations: int = 1_000, **overrides: object) -> DGNetConfig:
    """Small networks and pictures for two CPU cores: the same code and a schedule of `iterations`.

    As in the paper ramped weights are 0 for the first 30 % of the run, and the ramp to lambda_prim takes 4 %. A run so
    short has no time to lose: milestones stand at 80 % and 95 % (paper: 60 % and 90 %), generator and discriminator
    learn ten times faster and with momentum, images weigh five times as much beside identities, whose loss on pictures
    that are smears holds the decoder back, and the appearance encoder starts from the teacher's trunk, which the
    paper's finds in ImageNet weights. Clothes come from the appearance code (docs/step.md): the structure encoder sees
    no lightness, from which a gray picture tells most of them, and the code teaches the decoder, with weight.

    Args:
        num_classes: identities in the training set.
        iterations: length of the run, all other lengths follow from it.
        overrides: top-level fields of DGNetConfig to replace.
    """
    preset = DGNetConfig(
        num_classes=num_classes,
        iterations=1_000,
        network=laptop_network(),
        trunk_from_teacher=True,
        recipe=RecipeConfig(code_teaches_decoder=True),
        loss=LossConfig(
            image=10.0,
            generated_identity=0.2,
            appearance_code=20.0,
            code_warmup=Warmup(start=300, slope=0.5),
            teacher_warmup=Warmup(start=300, slope=0.05),
        ),
        optim=OptimConfig(generator_lr=1e-3, discriminator_lr=1e-3, adam_betas=(0.5, 0.999), milestones=(800, 950)),
        augment=AugmentConfig(pad=3),
    )
    return replace(preset.rescaled(iterations), **overrides)


def strong(num_classes: int, **overrides: object) -> DGNetConfig:
    """`paper` with what re-id has learned since, on the same ResNet-50: BNNeck, label smoothing and triplet loss (BoT,
    arXiv 1903.07071), GeM (AGW, arXiv 2001.04193), a cosine with warm-up, EMA.

    A batch and its positives hold two images of each identity, which the triplet loss needs no P x K batches for.

    Args:
        num_classes: identities in the training set.
        overrides: top-level fields of DGNetConfig to replace.
    """
    return replace(_strengthened(paper(num_classes), ema=0.999), **overrides)


def strong_laptop(num_classes: int, *, iterations: int = 1_000, **overrides: object) -> DGNetConfig:
    """`laptop` with the settings of `strong`.

    Args:
        num_classes: identities in the training set.
        iterations: length of the run, all other lengths follow from it.
        overrides: top-level fields of DGNetConfig to replace.
    """
    return replace(_strengthened(laptop(num_classes, iterations=iterations), ema=0.99), **overrides)


def _strengthened(config: DGNetConfig, ema: float) -> DGNetConfig:
    warmup = round(0.02 * config.iterations)
    return replace(
        config,
        network=replace(config.network, pooling="gem", neck="bnneck", prim_dropout=0.0),
        metric=MetricConfig(triplet=1.0),
        ema=ema,
        loss=replace(config.loss, label_smoothing=0.1),
        optim=replace(config.optim, warmup_iterations=warmup, cosine_end=max(warmup + 1, config.iterations)),
    )
