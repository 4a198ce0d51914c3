"""Whole experiments to start from: `paper` on any data set, `laptop` in minutes on two CPU cores, `strong` of both.

`release` is `paper` as the authors' code really runs; other methods know no difference.
"""

from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal, get_args

from dgnet_core.dgnet import config as presets
from dgnet_core.fdgan import config as fdgan
from dgnet_core.learning.config import MethodConfig
from dgnet_core.lsgan import config as lsgan
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.pg2gan import config as pg2gan
from dgnet_core.pngan import config as pngan
from dgnet_core.teacher.config import (
    TeacherConfig,
    laptop_teacher,
    paper_teacher,
    strong_laptop_teacher,
    strong_teacher,
)
from dgnet_platform.data.people.sizes import SIZES, DrawnSize
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import (
    AnyExperiment,
    DGNetExperiment,
    Experiment,
    Places,
    TaughtExperiment,
    TeacherExperiment,
)
from dgnet_platform.runs.lengths import fitting_iterations, remarks
from dgnet_platform.storage.serialize import differences, to_dict

Preset = Literal["laptop", "paper", "release", "strong-laptop", "strong"]
SMALL: tuple[Preset, ...] = ("laptop", "strong-laptop")
"""Of laptop size; the others are of the paper's."""
GeneratorName = Literal["lsgan", "pg2gan", "pngan", "fdgan"]
"""The generators that the paper compares DG-Net with (its Figure 3 and Table 2)."""
ComparedName = Literal["dgnet", "lsgan", "pg2gan", "pngan", "fdgan"]


def dgnet_experiment(preset: Preset, classes: int, images: int, iterations: int | None = None) -> DGNetExperiment:
    """DG-Net's experiment.

    Args:
        preset: where the settings come from.
        classes: training identities.
        images: their pictures.
        iterations: length of the run, with which warm-up, ramps and milestones scale; None: the preset's.
    """
    _check_length(iterations)
    match preset:
        case "laptop":
            model, baseline = presets.laptop(classes, iterations=800), laptop_teacher(classes, images)
        case "strong-laptop":
            model, baseline = presets.strong_laptop(classes, iterations=800), strong_laptop_teacher(classes, images)
        case "paper":
            model, baseline = presets.paper(classes), paper_teacher(classes, images)
        case "strong":
            model, baseline = presets.strong(classes), strong_teacher(classes, images)
        case "release":
            model = presets.release(classes)
            baseline = paper_teacher(classes, images, network=model.network)
    model = model.rescaled(iterations) if iterations else model
    if preset in SMALL:
        every = max(1, model.iterations // 5)
        return DGNetExperiment(
            model=model, baseline=baseline, log_every=1, evaluate_every=every, checkpoint_every=max(1, every // 2)
        )
    return DGNetExperiment(
        model=model, baseline=baseline, hold_out=False, evaluate_every=5_000, checkpoint_every=2_500, keep=2
    )


def generator_experiment(
    method: GeneratorName, preset: Preset, classes: int, images: int, iterations: int | None = None
) -> AnyExperiment:
    """The experiment of a compared generator; other arguments as for `dgnet_experiment`.

    It trains on all identities, as the paper's did, and is followed on query and gallery. The strong presets are about
    re-id: theirs are those of their size.
    """
    _check_length(iterations)
    if preset in SMALL:
        model = {"lsgan": lsgan.laptop, "pg2gan": pg2gan.laptop, "pngan": pngan.laptop, "fdgan": fdgan.laptop}[method](
            classes
        )
    elif method == "lsgan":
        model = lsgan.paper(classes, images)
    else:
        model = {"pg2gan": pg2gan.paper, "pngan": pngan.paper, "fdgan": fdgan.paper}[method](classes)
    model = model.rescaled(iterations) if iterations else model
    if preset in SMALL:
        every = max(1, model.iterations // 5)
        return Experiment(
            model=model, hold_out=False, log_every=10, evaluate_every=every, checkpoint_every=max(1, every // 2)
        )
    return Experiment(model=model, hold_out=False, evaluate_every=2_000, checkpoint_every=2_000, keep=2)


def compared_experiment(
    method: ComparedName,
    preset: Preset,
    classes: int,
    images: int,
    dataset: str,
    iterations: int | None = None,
) -> AnyExperiment:
    """The experiment of a generator, DG-Net included, on all identities of a data set."""
    if method == "dgnet":
        if iterations is None and preset not in SMALL:
            iterations = fitting_iterations(dataset, images)
        return replace(dgnet_experiment(preset, classes, images, iterations), hold_out=False)
    return generator_experiment(method, preset, classes, images, iterations)


def _check_length(iterations: int | None) -> None:
    if iterations is not None and iterations < 1:
        raise ExperimentError(f"--iterations {iterations}: must be 1 or more")


def teacher_experiment(preset: Preset, classes: int, images: int, iterations: int | None = None) -> TeacherExperiment:
    """The teacher's experiment; arguments as for `dgnet_experiment`."""
    around = dgnet_experiment(preset, classes, images, iterations)
    model = around.baseline.rescaled(iterations) if iterations else around.baseline
    return teacher_of(replace(around, baseline=model))


def teacher_of(experiment: TaughtExperiment[MethodConfig]) -> TeacherExperiment:
    """The experiment that trains the teacher of another one, on the same data and machines."""
    shared = {name: getattr(experiment, name) for name in _AROUND}
    every = max(1, experiment.baseline.iterations // 4)
    return TeacherExperiment(model=experiment.baseline, evaluate_every=every, checkpoint_every=every, keep=1, **shared)


def generator_of(experiment: DGNetExperiment, method: GeneratorName) -> AnyExperiment:
    """The experiment of a compared generator on the data and machines of DG-Net's.

    Its settings are those of the preset whose pictures are as large, its length is that on Market-1501, and changed as
    the other's is.
    """
    model = experiment.model
    preset: Preset = "laptop" if model.network.height < NetworkConfig().height else "paper"
    size = SIZES[DRAWN[preset]]
    standard = dgnet_experiment(preset, size.train_identities, size.train).model.iterations
    made = generator_experiment(method, preset, model.num_classes, size.train)
    iterations = max(1, round(made.model.iterations * model.iterations / standard))
    shared = {name: getattr(experiment, name) for name in _AROUND}
    every = max(1, iterations // 4)
    return replace(
        made, model=replace(made.model.rescaled(iterations), seed=model.seed), evaluate_every=every,
        checkpoint_every=every, keep=1, **shared,
    )  # fmt: skip


def length_remarks(preset: Preset, model: MethodConfig, images: int) -> list[str]:
    """What is unusual about the length and batches of a run of DG-Net beside its preset's; of others, nothing.

    Args:
        preset: the run's.
        model: the run's.
        images: pictures that it trains on.
    """
    if preset in SMALL or not isinstance(model, presets.DGNetConfig):
        return []
    return remarks(model, dgnet_experiment(preset, model.num_classes, images, model.iterations).model, images)


def nearest_preset(experiment: AnyExperiment, images: int) -> tuple[Preset, dict[str, tuple[Any, Any]]] | None:
    """The preset of an experiment's length that it differs least from, and both values of what differs by path.

    Args:
        experiment: any; one of a method without presets has none.
        images: pictures of the training split.
    """
    model = experiment.model
    make = {
        presets.DGNetConfig: dgnet_experiment,
        TeacherConfig: teacher_experiment,
        lsgan.LSGANConfig: partial(generator_experiment, "lsgan"),
        pg2gan.PG2GANConfig: partial(generator_experiment, "pg2gan"),
        pngan.PNGANConfig: partial(generator_experiment, "pngan"),
        fdgan.FDGANConfig: partial(generator_experiment, "fdgan"),
    }.get(type(model))
    if make is None:
        return None
    found: dict[Preset, dict[str, tuple[Any, Any]]] = {}
    for preset in get_args(Preset):
        before = to_dict(make(preset, model.num_classes, images, model.iterations))
        changed = differences(before, to_dict(experiment))
        found[preset] = {path: values for path, values in changed.items() if path not in _PLACES}
    nearest = min(found, key=lambda preset: len(found[preset]))
    return nearest, found[nearest]


_AROUND = (
    "data", "hold_out", "storage", "archive", "tracking_uri", "workers", "gpus", "threads", "max_failures", "log_every",
)  # fmt: skip
"""What an experiment has in common with one that is made for it."""
_PLACES = {field.name for field in fields(Places)}
DRAWN: dict[Preset, DrawnSize] = {preset: "laptop" if preset in SMALL else "market" for preset in get_args(Preset)}
"""How many people are drawn where no data is named."""


TRIALS: dict[Preset, int] = {preset: 8 if preset in SMALL else 64 for preset in get_args(Preset)}
ITERATIONS: dict[Preset, int | None] = {preset: 400 if preset in SMALL else None for preset in get_args(Preset)}
"""Length of a trial where none is given; None: the preset's."""
