"""What a search may vary, by name: where it stands in a run's settings, its values, and what public work suggests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from dgnet_core.dgnet.config import Confidence, DGNetConfig, LossConfig, SoftLabel
from dgnet_core.learning.config import OptimizerKind, Partners
from dgnet_core.networks.config import Neck, Pooling

Value = float | int | str
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Decay = Literal["milestones", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Something that a search may vary."""

    meaning: str
    """In words, with the paper's name or the public work that it is from."""
    read: Callable[[DGNetConfig], Value]
    """Its value in a run."""
    write: Callable[[DGNetConfig, Any], DGNetConfig] = lambda config, _: config
    """A run with another value; raises ValueError for one that no run can have. By default `Space.apply` knows."""
    type: Any = Weight
    """Of its values, as pydantic checks it."""
    published: Any = None
    """The dimension that public work suggests, or a function that makes it for a run; None: none is known."""

    def suggested(self, config: DGNetConfig) -> Any:
        """The dimension that public work suggests for a run; None: none is known."""
        return self.published(config) if callable(self.published) else self.published


def _with(section: Any, path: tuple[str, ...], value: Any) -> Any:
    """A configuration with another value at a path."""
    name, *below = path
    return replace(section, **{name: _with(getattr(section, name), tuple(below), value) if below else value})


def _field(path: str, meaning: str, kind: Any = Weight, published: Any = None) -> Parameter:
    names = tuple(path.split("."))
    return Parameter(
        meaning=meaning,
        read=lambda config: reduce(getattr, names, config),
        write=lambda config, value: _with(config, names, value),
        type=kind,
        published=published,
    )


def _choices(*values: Value) -> dict[str, list[Value]]:
    return {"choices": list(values)}


def _rising(config: DGNetConfig) -> dict[str, list[Value]]:
    """Rate warm-ups: none, the run's own, that of the preset `strong` and that of BoT (10 epochs of 120)."""
    shares = (0.02, 10 / 120)
    return _choices(*sorted({0, config.optim.warmup_iterations, *(round(s * config.iterations) for s in shares)}))


def _with_decay(config: DGNetConfig, value: Decay) -> DGNetConfig:
    """A run whose cosine, if it has one, ends with it."""
    end = max(config.optim.warmup_iterations + 1, config.iterations)
    return _with(config, ("optim", "cosine_end"), end if value == "cosine" else None)


def ramp_of(config: DGNetConfig) -> int:
    """Iterations from the warm-up start until the largest ramped weight that a run has is at its maximum."""
    loss = config.loss
    teacher = loss.teacher_warmup.end(loss.prim) - loss.teacher_warmup.start
    code = loss.code_warmup.end(largest_code(loss)) - loss.code_warmup.start
    return teacher or code or 1


def largest_code(loss: LossConfig) -> float:
    """The largest of the code and cycle weights."""
    return max(loss.appearance_code, loss.structure_code, loss.cycle)


PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "image": _field("loss.image", "lambda_img, reconstruction of the image (Eq. 1, 2)"),
        "generated_identity": _field("loss.generated_identity", "lambda_id, identity of generated images (Eq. 6)"),
        "prim": _field("loss.prim", "lambda_prim at its maximum (Eq. 8)"),
        "alpha": _field("loss.alpha", "lambda_fine / lambda_prim (Eq. 9)"),
        "appearance_code": _field("loss.appearance_code", "maximum weight of the appearance code's term (Eq. 4)"),
        "structure_code": _field("loss.structure_code", "maximum weight of the structure code's term (Eq. 5)"),
        "cycle": _field("loss.cycle", "maximum weight of the cycle term (release)"),
        "warmup_start": Parameter(
            meaning="last iteration at which all ramped weights are 0, of both groups (section 3.3)",
            read=lambda config: config.loss.teacher_warmup.start,
            type=Count,
        ),
        "ramp": Parameter(
            meaning="iterations from there to the maxima, of both groups (section 3.3)",
            read=ramp_of,
            type=Annotated[int, Field(ge=1)],
        ),
        "soft_label": _field("recipe.soft_label", "target of L_prim", SoftLabel),
        "appearance_lr": _field("optim.appearance_lr", "learning rate of the appearance encoder", Rate),
        "generator_lr": _field("optim.generator_lr", "learning rate of structure encoder and decoder", Rate),
        "discriminator_lr": _field("optim.discriminator_lr", "learning rate of the discriminator", Rate),
        # Which generated pictures feed: act from the warm-up on, so that trials share what comes before.
        "confidence": _field(
            "feed.confidence", "what the teacher's confidence decides", Confidence, _choices("all", "filter", "weight")
        ),
        "least_confidence": _field(
            "feed.least_confidence", "least confidence of the filter", Share, {"low": 0.1, "high": 0.9}
        ),
        "pictures": _field(
            "feed.pictures", "generated pictures of each structure that feed", Annotated[int, Field(ge=1)],
            _choices(1, 2),
        ),
        "share": _field(
            "feed.share", "share of generated pictures that feed at the warm-up start", Share, {"low": 0.0, "high": 1.0}
        ),
        "last_share": _field("feed.last_share", "the same at the run's end", Share, {"low": 0.0, "high": 1.0}),
        # What re-id has learned since: acts from the first iteration on.
        "partners": _field(
            "partners", "how batch b is drawn, which gives structures (rare_pose: needs key points)", Partners,
            _choices("uniform", "rare_camera", "rare_pose"),
        ),
        "label_smoothing": _field(
            "loss.label_smoothing", "label smoothing (arXiv 1512.00567; 0.1 in BoT, 1903.07071)", Fraction,
            _choices(0.0, 0.1),
        ),
        "triplet": _field(
            "metric.triplet", "triplet loss, hard mining, soft margin (BoT, arXiv 1903.07071; AGW, 2001.04193)", Weight,
            _choices(0.0, 1.0),
        ),
        "circle": _field("metric.circle", "circle loss (arXiv 2002.10857)", Weight, _choices(0.0, 1.0)),
        "circle_margin": _field(
            "metric.circle_margin", "m of circle loss (arXiv 2002.10857)", Fraction, {"low": 0.1, "high": 0.4}
        ),
        "circle_scale": _field(
            "metric.circle_scale", "gamma of circle loss (arXiv 2002.10857)", Rate, _choices(64.0, 128.0, 256.0)
        ),
        "neck": _field("network.neck", "BNNeck (BoT, arXiv 1903.07071)", Neck, _choices("release", "bnneck")),
        "pooling": _field("network.pooling", "GeM (arXiv 1711.02512)", Pooling, _choices("release", "gem")),
        "instances": _field(
            "instances", "images of an identity in a batch (P x K; BoT, arXiv 1903.07071)", Annotated[int, Field(ge=1)],
            _choices(1, 4),
        ),
        "prim_dropout": _field(
            "network.prim_dropout", "dropout before f_prim's classifier (release 0.5; BoT has none)", Fraction,
            _choices(0.0, 0.5),
        ),
        "optimizer": _field(
            "optim.optimizer", "of the appearance encoder (release: sgd, BoT: adam); search appearance_lr with it",
            OptimizerKind, _choices("sgd", "adam", "adamw"),
        ),
        "lr_warmup": _field("optim.warmup_iterations", "iterations in which its rate rises (BoT)", Count, _rising),
        "lr_decay": Parameter(
            meaning="how all rates fall: at milestones, or along half a cosine to the run's end (arXiv 1608.03983)",
            read=lambda config: "milestones" if config.optim.cosine_end is None else "cosine",
            write=_with_decay,
            type=Decay,
            published=_choices("milestones", "cosine"),
        ),
        "ema": _field("ema", "decay of averaged weights (arXiv 1703.01780)", Fraction, _choices(0.0, 0.99, 0.999)),
        "pretrained": _field(
            "network.pretrained", "what the ResNet starts from, such as your file of LUPerson's (arXiv 2012.03753)", str
        ),
    }
)  # fmt: skip
"""Everything that can be searched, by name."""

CODE = {"appearance_code", "structure_code", "cycle"}
"""The ramped weights of the code and cycle terms."""
