"""The options of the commands, and the experiments they start from: read before anything heavy is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro
import yaml

from dgnet_platform.data.held_out import held_out_people, needed_classes
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.errors import ExperimentError
from dgnet_platform.evaluation.config import CompareConfig
from dgnet_platform.runs.experiment import (
    AnyExperiment,
    DGNetExperiment,
    Experiment,
    Model,
    Places,
    Taught,
    TaughtExperiment,
    TeacherExperiment,
    check_name,
)
from dgnet_platform.runs.presets import (
    DRAWN,
    ITERATIONS,
    ComparedName,
    GeneratorName,
    Preset,
    dgnet_experiment,
    generator_experiment,
    teacher_experiment,
)
from dgnet_platform.runs.run import absolute
from dgnet_platform.runs.tracking_uri import usable
from dgnet_platform.search.config import SearchConfig
from dgnet_platform.storage.serialize import from_dict, to_dict
from dgnet_platform.tables.config import TableName

if TYPE_CHECKING:
    from dgnet_platform.search.space import Space

Kind = TypeVar("Kind", bound=AnyExperiment)


@dataclass(frozen=True, kw_only=True)
class DefaultsFrom(Places):
    """What the defaults of all other settings depend on."""

    preset: Preset = "laptop"
    """laptop: small networks and pictures, minutes on two CPU cores; paper: the paper's run."""
    iterations: int | None = None
    """Length of a run or trial; warm-up, ramps and milestones scale with it. None: the preset's, and 400 for trials of
    the laptop's."""
    config: Path | None = None
    """A YAML file with settings that differ from the preset's, named as in --dry-run."""
    dry_run: bool = False
    """Show what would be done, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(DefaultsFrom):
    """What is done with an experiment."""

    resume_from: Path | None = None
    """A checkpoint that a new run starts from, with its iteration and optimisers."""
    register: str | None = None
    """Publish the finished model in MLflow's registry under this name."""


@dataclass(frozen=True, kw_only=True)
class TrainDGNet(RunOptions, DGNetExperiment):
    """Options of jobs/train_market.py."""


@dataclass(frozen=True, kw_only=True)
class TrainTeacher(RunOptions, TeacherExperiment):
    """Options of jobs/train_teacher.py."""


@dataclass(frozen=True, kw_only=True)
class GeneratorChoice:
    """Which generator is trained."""

    method: GeneratorName = "pg2gan"
    """lsgan draws people from noise; pg2gan, pngan and fdgan draw a given person in a given pose."""


@dataclass(frozen=True, kw_only=True)
class GeneratorDefaults(GeneratorChoice, DefaultsFrom):
    """What the defaults of all other settings of a generator depend on."""


@dataclass(frozen=True, kw_only=True)
class TrainGenerator(GeneratorChoice, RunOptions, Experiment[Model]):
    """Options of jobs/train_generator.py."""


@dataclass(frozen=True, kw_only=True)
class CompareGenerators(CompareConfig):
    """Options of jobs/compare_generators.py."""

    train: tuple[ComparedName, ...] = ()
    """Generators that are trained first; runs that are finished are found again."""
    preset: Preset = "laptop"
    """Of those: laptop or paper."""
    iterations: int | None = None
    """Length of those runs; None: the preset's."""
    storage: str = field(default_factory=lambda: Places().storage)
    """Folder of those runs."""
    tracking_uri: str = ""
    """MLflow's store or server for those runs."""


@dataclass(frozen=True, kw_only=True)
class TuneMarket(DefaultsFrom, Taught, SearchConfig):
    """Options of jobs/tune_market.py."""

    trials: str = ""
    """How many trials are wanted in all: 8 (laptop) or 64 (paper) by default; +N: so many more, once those that were
    wanted are done."""
    space: Path | None = None
    """A YAML file with what is searched: by parameter a value that fixes it, {low: ..., high: ..., log: ..., step: ...}
    or {choices: [...]}."""
    set: tuple[str, ...] = ()
    """The same for one parameter each, such as alpha=0.2 'prim={low: 1, high: 4}'."""
    retrain: bool = False
    """At the end, train the best trial's settings on all training identities."""
    seconds_before: float | None = None
    """Seconds of an iteration before the warm-up start, for the plan that --dry-run shows."""
    seconds_after: float | None = None
    """The same after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number = self.trials.removeprefix("+")
        if self.trials and not (number.isascii() and number.isdigit() and int(number)):
            raise ValueError(f"trials {self.trials!r}: a number such as 64, or one with a plus such as +16")
        if (self.seconds_before is None) != (self.seconds_after is None):
            raise ValueError("seconds_before and seconds_after: give both or none")
        check_name(self.name)

    @property
    def search(self) -> SearchConfig:
        """Those of the search itself."""
        return SearchConfig(**{field.name: getattr(self, field.name) for field in fields(SearchConfig)})


@dataclass(frozen=True, kw_only=True)
class PaperTables(DefaultsFrom, Taught):
    """Options of jobs/paper_tables.py."""

    tables: tuple[TableName, ...] = ("ablation", "labels", "state_of_the_art")
    """Which tables; sensitivity trains on fewer identities, and transfer needs --stores."""
    seeds: int = 3
    """With how many seeds, 0, 1, ..., each row is trained; from 2 on there is a deviation."""
    stores: tuple[str, ...] = ()
    """Further stores, folders or URIs, for the table of transfer."""
    partial: bool = False
    """Train nothing: report what there is, with gaps."""
    any_code: bool = False
    """Take runs that other code has trained."""
    concurrent: int = 0
    """Runs at once; 0: as many as fit, on CPUs alone one a machine."""
    workers_per_run: int = 0
    """Ray Train workers of a run; 0 or 1: its own process trains."""
    gpus_per_run: float = 0.0
    """GPUs of a run, over all its workers."""
    seconds_before: float | None = None
    """Seconds of an iteration before the warm-up start, for the plan that --dry-run shows."""
    seconds_after: float | None = None
    """The same after it."""

    def __post_init__(self) -> None:
        check_name(self.name)
        for name, least in (("seeds", 1), ("concurrent", 0), ("workers_per_run", 0), ("gpus_per_run", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: must be {least} or more")
        if not self.tables:
            raise ValueError("tables: name one at least")
        if (self.seconds_before is None) != (self.seconds_after is None):
            raise ValueError("seconds_before and seconds_after: give both or none")


def parse(
    options: type[TrainDGNet] | type[TrainTeacher] | type[TrainGenerator[Any]],
    description: str | None,
    args: Sequence[str],
) -> tuple[RunOptions, AnyExperiment]:
    """The experiment that a command line asks for, and what is done with it.

    Raises:
        ExperimentError: --iterations is too small, or the file of --config is no configuration.
        StoreError: --data is no store.
        SystemExit: the command line is wrong (tyro has explained it), or asked for help.
    """
    defaults = GeneratorDefaults if options is TrainGenerator else DefaultsFrom
    first, _ = tyro.cli(defaults, args=args, return_unknown_args=True, add_help=False)
    identities, pictures = _counts(first)
    choice: dict[str, Any] = {"preset": first.preset}
    if isinstance(first, GeneratorDefaults):
        preset = partial(generator_experiment, first.method)
        choice["method"] = first.method
    else:
        preset = dgnet_experiment if options is TrainDGNet else teacher_experiment
    unset = preset(first.preset, identities, pictures, first.iterations)
    if isinstance(first, GeneratorDefaults):
        options = TrainGenerator[type(unset.model)]
    default = unset if first.config is None else _from_file(first.config, unset)
    shown = {field.name: getattr(default, field.name) for field in fields(default)}
    given = tyro.cli(options, args=args, description=description, default=options(**shown, **choice))
    experiment = replace(default, **{name: getattr(given, name) for name in shown})
    if experiment.model.num_classes == identities and experiment.hold_out:  # not set otherwise: the data decides
        experiment = _with_classes(experiment, identities - held_out_people(identities))
    return given, experiment


def base_experiment(options: DefaultsFrom) -> DGNetExperiment:
    """What the trials of a search have in common: an experiment with identities held out.

    Raises:
        ExperimentError: --iterations is too small, or the file of --config is no configuration.
        StoreError: --data is no store.
    """
    identities, pictures = _counts(options)
    experiment = replace(dgnet_experiment(options.preset, identities, pictures, options.iterations), hold_out=True)
    if options.config is not None:
        experiment = _from_file(options.config, experiment)
    if experiment.model.num_classes == identities and experiment.hold_out:
        return _with_classes(experiment, identities - held_out_people(identities))
    return experiment


def table_base(options: PaperTables, data: str, hold_out: bool) -> DGNetExperiment:
    """The paper's run on a store, without a seed yet.

    Args:
        options: the command's.
        data: the store's location; nothing: people that will be drawn.
        hold_out: keep identities out of training to compare settings on; otherwise it is as the preset has it.

    Raises:
        ExperimentError: --iterations is too small, or the file of --config is no configuration.
        StoreError: there is no store.
    """
    identities, pictures = _counts(replace(options, data=data))
    experiment = dgnet_experiment(options.preset, identities, pictures, options.iterations)
    if options.config is not None:
        experiment = _from_file(options.config, experiment)
    experiment = replace(
        experiment,
        data=absolute(data),
        name="",
        storage=absolute(options.storage),
        archive=absolute(options.archive or experiment.archive),
        tracking_uri=usable(options.tracking_uri or experiment.tracking_uri),
        teacher=experiment.teacher if options.teacher == "auto" else options.teacher,
        hold_out=experiment.hold_out or hold_out,
    )
    return _with_classes(experiment, identities - (held_out_people(identities) if experiment.hold_out else 0))


def base_and_space(options: TuneMarket) -> tuple[DGNetExperiment, "Space"]:
    """What all trials have in common, and what is searched.

    Raises:
        ExperimentError, StoreError, SpaceError: a file or the command line asks for what does not exist.
    """
    from dgnet_platform.search.space import Space  # Optuna: --help does without it

    iterations = ITERATIONS[options.preset] if options.iterations is None else options.iterations
    base = base_experiment(replace(options, iterations=iterations))
    if options.config is not None and not base.hold_out:
        raise ExperimentError(
            f"--config {options.config}: hold_out is false, but trials are compared on those held out"
        )
    grouped = options.workers_per_trial > 1
    base = replace(
        base,
        data=absolute(options.data or base.data),
        storage=absolute(options.storage),
        archive=absolute(options.archive or base.archive),
        tracking_uri=usable(options.tracking_uri or base.tracking_uri),
        teacher=base.teacher if options.teacher == "auto" else options.teacher,
        workers=str(options.workers_per_trial) if grouped else "0",
        gpus=grouped and options.gpus_per_trial > 0,
    )
    space = Space.default(base.model)
    if options.space is not None:
        space = space.overridden(
            _read_yaml("--space", options.space, "parameters with their values, such as alpha: 0.2")
        )
    space = space.overridden(dict(map(_dimension, options.set)))
    space.distances(base.model, options.stopping)  # refuses a space that does not fit the run
    return base, space


def _dimension(text: str) -> tuple[str, object]:
    """One dimension of the space from the command line."""
    name, equals, value = text.partition("=")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = None
    if not equals or parsed is None:
        raise ExperimentError(
            f"--set {text}: a value, a range or choices are needed, such as alpha=0.2, 'alpha={{low: 0.1, high: 1}}' or"
            " 'alpha={choices: [0.1, 0.2]}'"
        )
    return name.strip(), parsed


# ------------------------------------------------------------------------------------------------------------
# Where the settings come from


def _counts(options: DefaultsFrom) -> tuple[int, int]:
    """Identities and pictures in the training split that a command line or its file names."""
    data = options.data
    if not data and options.config is not None:
        data = str(read_settings(options.config).get("data") or "")
    if not data:
        size = SIZES[DRAWN[options.preset]]
        return size.train_identities, size.train
    from dgnet_platform.data.store import Store  # Parquet: a command line without --data does without it

    store = Store.open(data)
    return needed_classes(store, hold_out=False), store.count("train")


def read_settings(path: Path) -> Mapping[str, Any]:
    """The settings in a file of --config; raises ExperimentError for a file that holds no such thing."""
    return _read_yaml("--config", path, "settings with their values, such as keep: 3")


def _read_yaml(option: str, path: Path, needed: str) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_bytes()) or {}  # bytes: YAML is UTF-8 or 16, whatever the locale
    except yaml.reader.ReaderError as error:
        raise ExperimentError(f"{option} {path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except (OSError, yaml.YAMLError) as error:
        raise ExperimentError(f"{option} {path}: {error}") from None
    if not isinstance(values, Mapping):
        raise ExperimentError(f"{option} {path}: {needed} are needed")
    return values


def _from_file(path: Path, default: Kind) -> Kind:
    """An experiment with the settings of a YAML file in place of the preset's.

    Raises:
        ExperimentError: it is no YAML file, or has settings that do not exist.
    """
    values = read_settings(path)
    try:
        kind: Any = type(default)
        return from_dict(kind[type(default.model)], _merged(to_dict(default), values))
    except ValueError as error:
        raise ExperimentError(f"--config {path}: {error}") from None


def _merged(values: Mapping[str, Any], over: Any) -> Any:
    """A tree of values with those of another in their place."""
    if not isinstance(over, Mapping):
        return over
    return {
        **values,
        **{k: _merged(values[k], v) if isinstance(values.get(k), Mapping) else v for k, v in over.items()},
    }


def _with_classes(experiment: Kind, classes: int) -> Kind:
    """The experiment for so many identities."""
    experiment = replace(experiment, model=replace(experiment.model, num_classes=classes))
    if isinstance(experiment, TaughtExperiment):
        return replace(experiment, baseline=replace(experiment.baseline, num_classes=classes))
    return experiment
