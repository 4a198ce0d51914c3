"""Whole experiments to start from: `paper` on any data set, `laptop` in minutes on two CPU cores."""

from dataclasses import fields, replace
from typing import Any, Literal, get_args

from dgnet_core.dgnet import config as presets
from dgnet_core.learning.config import MethodConfig
from dgnet_core.teacher.config import TeacherConfig, laptop_teacher, paper_teacher
from dgnet_platform.data.people.sizes import DrawnSize
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import (
    AnyExperiment,
    DGNetExperiment,
    Places,
    TaughtExperiment,
    TeacherExperiment,
)
from dgnet_platform.storage.serialize import differences, to_dict

Preset = Literal["laptop", "paper"]


def dgnet_experiment(preset: Preset, classes: int, images: int, iterations: int | None = None) -> DGNetExperiment:
    """DG-Net's experiment.

    Args:
        preset: where the settings come from.
        classes: training identities.
        images: their pictures.
        iterations: length of the run, with which warm-up, ramps and milestones scale; None: the preset's.
    """
    if iterations is not None and iterations < 1:
        raise ExperimentError(f"--iterations {iterations}: must be 1 or more")
    if preset == "laptop":
        model, baseline = presets.laptop(classes, iterations=800), laptop_teacher(classes, images)
    else:
        model, baseline = presets.paper(classes), paper_teacher(classes, images)
    model = model.rescaled(iterations) if iterations else model
    if preset == "laptop":
        every = max(1, model.iterations // 5)
        return DGNetExperiment(
            model=model, baseline=baseline, log_every=1, evaluate_every=every, checkpoint_every=max(1, every // 2)
        )
    return DGNetExperiment(
        model=model, baseline=baseline, hold_out=False, evaluate_every=5_000, checkpoint_every=2_500, keep=2
    )


def teacher_experiment(preset: Preset, classes: int, images: int, iterations: int | None = None) -> TeacherExperiment:
    """The teacher's experiment; arguments as for `dgnet_experiment`."""
    around = dgnet_experiment(preset, classes, images, iterations)
    model = around.baseline.rescaled(iterations) if iterations else around.baseline
    return teacher_of(replace(around, baseline=model))


def teacher_of(experiment: TaughtExperiment[MethodConfig]) -> TeacherExperiment:
    """The experiment that trains the teacher of another one, on the same data and machines."""
    shared = {
        name: getattr(experiment, name)
        for name in (
            "data", "hold_out", "storage", "archive", "tracking_uri", "workers", "gpus", "threads", "max_failures",
            "log_every",
        )
    }  # fmt: skip
    every = max(1, experiment.baseline.iterations // 4)
    return TeacherExperiment(model=experiment.baseline, evaluate_every=every, checkpoint_every=every, keep=1, **shared)


def nearest_preset(experiment: AnyExperiment, images: int) -> tuple[Preset, dict[str, tuple[Any, Any]]] | None:
    """The preset of an experiment's length that it differs least from, and both values of what differs by path.

    Args:
        experiment: any; one of a method without presets has none.
        images: pictures of the training split.
    """
    model = experiment.model
    make = {presets.DGNetConfig: dgnet_experiment, TeacherConfig: teacher_experiment}.get(type(model))
    if make is None:
        return None
    found: dict[Preset, dict[str, tuple[Any, Any]]] = {}
    for preset in get_args(Preset):
        before = to_dict(make(preset, model.num_classes, images, model.iterations))
        changed = differences(before, to_dict(experiment))
        found[preset] = {path: values for path, values in changed.items() if path not in _PLACES}
    nearest = min(found, key=lambda preset: len(found[preset]))
    return nearest, found[nearest]


_PLACES = {field.name for field in fields(Places)}
DRAWN: dict[Preset, DrawnSize] = {"laptop": "laptop", "paper": "market"}
"""How many people are drawn where no data is named."""


TRIALS: dict[Preset, int] = {"laptop": 8, "paper": 64}
ITERATIONS: dict[Preset, int | None] = {"laptop": 400, "paper": None}
"""Length of a trial where none is given; None: the preset's."""
