"""The training jobs' options, and the experiments they start from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from rich.console import Console
from rich.progress import Progress

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.held_out import held_out_people, needed_classes
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import AnyExperiment, DGNetExperiment, TeacherExperiment
from dgnet_platform.runs.presets import DRAWN, Preset, dgnet_experiment, teacher_experiment
from dgnet_platform.runs.run import folder_of
from dgnet_platform.storage.serialize import from_dict, to_dict

Kind = TypeVar("Kind", bound=AnyExperiment)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where an experiment's settings start from, and what is done with it."""

    preset: Preset = "laptop"
    """laptop: small networks and pictures, minutes on two CPU cores; paper: the paper's run."""
    iterations: int | None = None
    """Length of the run; warm-up, ramps and milestones scale with it. None: the preset's."""
    config: Path | None = None
    """A YAML file with settings that differ from the preset's, named as in --dry-run."""
    resume_from: Path | None = None
    """A checkpoint that a new run starts from, with its iteration and optimisers; other settings may have changed."""
    register: str | None = None
    """Publish the finished model in MLflow's registry under this name."""
    dry_run: bool = False
    """Show what would be done, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainDGNet(Start, DGNetExperiment):
    """Options of jobs/train_market.py."""


@dataclass(frozen=True, kw_only=True)
class TrainTeacher(Start, TeacherExperiment):
    """Options of jobs/train_teacher.py."""


def parse(
    options: type[TrainDGNet] | type[TrainTeacher], description: str | None, args: Sequence[str]
) -> tuple[Start, AnyExperiment]:
    """The experiment that a command line asks for.

    Raises:
        ExperimentError: the file of --config is no configuration.
        StoreError: --data is no store.
        SystemExit: the command line is wrong (tyro has explained it), or asked for help.
    """
    first, _ = tyro.cli(Base, args=args, return_unknown_args=True, add_help=False)
    people, images = _counts(first)
    kind, preset = (
        (DGNetExperiment, dgnet_experiment)
        if issubclass(options, DGNetExperiment)
        else (TeacherExperiment, teacher_experiment)
    )
    unset = preset(first.preset, people, images, first.iterations)
    default = unset if first.config is None else _from_file(first.config, unset)
    shown = {field.name: getattr(default, field.name) for field in fields(kind)}
    given = tyro.cli(options, args=args, description=description, default=options(**shown, preset=first.preset))
    start = Start(**{field.name: getattr(given, field.name) for field in fields(Start)})
    experiment = kind(**{field.name: getattr(given, field.name) for field in fields(kind)})
    if experiment.model.num_classes == people and experiment.hold_out:  # nobody said otherwise: the data decides
        experiment = _with_classes(experiment, people - held_out_people(people))
    return start, experiment


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the defaults of an experiment's settings depend on."""

    preset: Preset = "laptop"
    iterations: int | None = None
    config: Path | None = None
    data: str = ""


def base_experiment(base: Base) -> DGNetExperiment:
    """What the trials of a search have in common: an experiment with identities held out.

    Raises:
        ExperimentError: the file of --config is no configuration.
        StoreError: --data is no store.
    """
    people, images = _counts(base)
    experiment = replace(dgnet_experiment(base.preset, people, images, base.iterations), hold_out=True)
    if base.config is not None:
        experiment = _from_file(base.config, experiment)
    assert isinstance(experiment, DGNetExperiment)
    if experiment.model.num_classes == people and experiment.hold_out:
        found = _with_classes(experiment, people - held_out_people(people))
        assert isinstance(found, DGNetExperiment)
        return found
    return experiment


def _counts(first: Base) -> tuple[int, int]:
    """Identities and pictures in the training split that a command line or its file names."""
    data = first.data or (str(read_yaml(first.config).get("data") or "") if first.config else "")
    if not data:
        size = SIZES[DRAWN[first.preset]]
        return size.train_identities, size.train
    store = Store.open(data)
    return needed_classes(store, hold_out=False), store.count("train")


def _from_file(path: Path, default: AnyExperiment) -> AnyExperiment:
    """An experiment with the settings of a YAML file in place of the preset's.

    Raises:
        ExperimentError: it is no YAML file, or has settings that there are not.
    """
    values = read_yaml(path)
    try:
        return from_dict(type(default), merged(to_dict(default), values))
    except ValueError as error:
        raise ExperimentError(f"--config {path}: {error}") from None


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Settings with their values; raises ExperimentError for a file that holds no such thing."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"--config {path}: {error}") from None
    if not isinstance(values, Mapping):
        raise ExperimentError(f"--config {path}: settings with their values are needed, such as keep: 3")
    return values


def merged(values: Mapping[str, Any], over: Any) -> Any:
    """A tree of values with those of another in their place."""
    if not isinstance(over, Mapping):
        return over
    return {
        **values,
        **{k: merged(values[k], v) if isinstance(values.get(k), Mapping) else v for k, v in over.items()},
    }


def _with_classes(experiment: AnyExperiment, classes: int) -> AnyExperiment:
    """The experiment for so many identities."""
    if isinstance(experiment, TeacherExperiment):
        return replace(experiment, model=replace(experiment.model, num_classes=classes))
    baseline = replace(experiment.baseline, num_classes=classes)
    return replace(experiment, model=replace(experiment.model, num_classes=classes), baseline=baseline)


# ------------------------------------------------------------------------------------------------------------
# Around the run


def drawn_store(storage: str, preset: Preset) -> Path:
    """Where the people are that are drawn for a preset."""
    return folder_of(storage, "data") / f"people-{DRAWN[preset]}"


def with_data(preset: Preset, experiment: Kind, console: Console) -> Kind:
    """The experiment on a store that exists: where none is named, people are drawn, once."""
    if experiment.data:
        return experiment
    out = drawn_store(experiment.storage, preset)
    if not out.exists():
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("drawing people")
            config = PrepareConfig(dataset="people", size=DRAWN[preset], out=out)
            prepare(config, lambda done, total: bar.update(task, completed=done, total=total))
    return replace(experiment, data=str(out))
