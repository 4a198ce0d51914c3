"""The experiments that command lines and their files ask for: made before anything heavy is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import tyro
import yaml

from dgnet_platform.cli.options import (
    DefaultsFrom,
    DGNetDefaults,
    GeneratorDefaults,
    LinearRule,
    PaperTables,
    RunOptions,
    TrainDGNet,
    TrainGenerator,
    TrainTeacher,
    TuneMarket,
)
from dgnet_platform.data.held_out import held_out_people, needed_classes
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import (
    AnyExperiment,
    DGNetExperiment,
    TaughtExperiment,
)
from dgnet_platform.runs.lengths import by_linear_rule, fitting_iterations, iterations_of
from dgnet_platform.runs.presets import (
    DRAWN,
    ITERATIONS,
    SMALL,
    dgnet_experiment,
    generator_experiment,
    teacher_experiment,
)
from dgnet_platform.runs.run import absolute
from dgnet_platform.runs.tracking_uri import usable
from dgnet_platform.storage.files import resolved
from dgnet_platform.storage.serialize import from_dict, to_dict

if TYPE_CHECKING:
    from dgnet_core.dgnet.config import DGNetConfig
    from dgnet_platform.search.space import Space

Kind = TypeVar("Kind", bound=AnyExperiment)


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
    kinds = {TrainGenerator: GeneratorDefaults, TrainDGNet: DGNetDefaults}
    defaults = kinds.get(options, DefaultsFrom)
    first, _ = tyro.cli(defaults, args=args, return_unknown_args=True, add_help=False)
    identities, pictures, dataset = _counts(first)
    choice: dict[str, Any] = {"preset": first.preset}
    if isinstance(first, GeneratorDefaults):
        preset = partial(generator_experiment, first.method)
        choice["method"] = first.method
    else:
        preset = dgnet_experiment if options is TrainDGNet else teacher_experiment
    unset = preset(first.preset, identities, pictures, _no_epochs_too(first))
    if first.epochs is not None:
        length = iterations_of(first.epochs, pictures, unset.model.batch_size)
        unset = preset(first.preset, identities, pictures, length)
    elif options is TrainDGNet:
        unset = preset(first.preset, identities, pictures, _length(first, pictures, dataset))
    if isinstance(first, DGNetDefaults):
        unset = _by_linear_rule(cast(DGNetExperiment, unset), first, pictures)
    if isinstance(first, GeneratorDefaults):
        options = TrainGenerator[type(unset.model)]
    default = _with_file(first, unset)
    shown = {field.name: getattr(default, field.name) for field in fields(default)}
    given = tyro.cli(options, args=args, description=description, default=options(**shown, **choice))
    experiment = replace(default, **{name: getattr(given, name) for name in shown})
    if experiment.model.num_classes == identities and experiment.hold_out:  # not set otherwise: the data decides
        experiment = _with_classes(experiment, identities - held_out_people(identities))
    return given, experiment


def base_experiment(options: DGNetDefaults | TuneMarket) -> DGNetExperiment:
    """What the trials of a search have in common: an experiment with identities held out.

    Raises:
        ExperimentError: --iterations is too small, or the file of --config is no configuration.
        StoreError: --data is no store.
    """
    identities, pictures, dataset = _counts(options)
    length = _length(options, pictures, dataset)
    if isinstance(options, TuneMarket) and options.iterations is None and options.epochs is None:
        length = ITERATIONS[options.preset] or length
    experiment = replace(dgnet_experiment(options.preset, identities, pictures, length), hold_out=True)
    experiment = _by_linear_rule(experiment, options, pictures)
    # Trials are judged where they are evaluated, at equal distances from their ramps' ends to within this, and above
    # the half point of mAP by which BatchNorm's statistics let a figure wander.
    every, model = max(1, experiment.model.iterations // 20), replace(experiment.model, precise_batches=40)
    experiment = _with_file(options, replace(experiment, evaluate_every=every, model=model))
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
    identities, pictures, dataset = _counts(replace(options, data=data))
    experiment = dgnet_experiment(options.preset, identities, pictures, _length(options, pictures, dataset))
    experiment = _by_linear_rule(experiment, options, pictures)
    experiment = _with_file(options, experiment)
    experiment = replace(
        experiment,
        data=absolute(data or experiment.data),
        name="",
        storage=absolute(options.storage),
        archive=absolute(options.archive or experiment.archive),
        tracking_uri=usable(options.tracking_uri or experiment.tracking_uri),
        teacher=experiment.teacher if options.teacher == "auto" else options.teacher,
        hold_out=experiment.hold_out or hold_out,
    )
    return _with_classes(experiment, identities - (held_out_people(identities) if experiment.hold_out else 0))


def check_tables(options: PaperTables) -> None:
    """Refuse settings and stores by which there are no tables.

    Raises:
        ExperimentError: --iterations is too small, or the file of --config or --settings is no configuration.
        StoreError: --data or one of --stores is no store.
    """
    base = table_base(options, options.data, hold_out=False)
    for path in options.settings:
        with_settings(path, base)
    open_stores(*options.stores)


def open_stores(*locations: str) -> None:
    """Refuse locations that hold no store; "" names none. Raises StoreError."""
    from dgnet_platform.data.store import Store  # Parquet: a wrong option is refused without it

    for location in filter(None, locations):
        Store.open(location)


def base_and_space(options: TuneMarket) -> tuple[DGNetExperiment, "Space"]:
    """What all trials have in common, and what is searched.

    Raises:
        ExperimentError, StoreError, SpaceError: a file or the command line asks for what does not exist.
    """
    from dgnet_platform.search.space import Space  # Optuna: --help does without it

    base = base_experiment(options)
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
    space = space.overridden(dict(_dimension(text, base.model) for text in options.set))
    space.distances(base.model, options.stopping, base.evaluate_every)  # refuses a space that does not fit the run
    return base, space


def _dimension(text: str, base: "DGNetConfig") -> tuple[str, object]:
    """One dimension of the space from the command line; `base` is what trials have in common."""
    from dgnet_platform.search.parameters import PARAMETERS  # Pydantic: --help does without it

    name, equals, value = text.partition("=")
    known = not equals and text in PARAMETERS
    if known and (suggested := PARAMETERS[text].suggested(base)) is not None:
        return text, suggested
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = None
    if not equals or parsed is None:
        raise ExperimentError(
            f"--set {text}: {'its name stands for no values of public work: ' if known else ''}a value, a range or"
            " choices are needed, such as alpha=0.2, 'alpha={low: 0.1, high: 1}' or 'alpha={choices: [0.1, 0.2]}'"
        )
    return name.strip(), parsed


# ------------------------------------------------------------------------------------------------------------
# Where the settings come from


def _length(options: DefaultsFrom, pictures: int, dataset: str) -> int | None:
    """Iterations of DG-Net that a command line asks for, or that suit the data set; None: the preset's."""
    iterations = _no_epochs_too(options)
    if options.epochs is not None:
        batch_size = dgnet_experiment(options.preset, 2, pictures).model.batch_size
        return iterations_of(options.epochs, pictures, batch_size)
    if iterations is None and options.preset not in SMALL:
        return fitting_iterations(dataset, pictures)
    return iterations


def _by_linear_rule(experiment: DGNetExperiment, options: LinearRule, pictures: int) -> DGNetExperiment:
    """An experiment of DG-Net with the batch that a command line asks for."""
    if options.linear_batch_size is None:
        return experiment
    return replace(experiment, model=by_linear_rule(experiment.model, options.linear_batch_size, pictures))


def _no_epochs_too(options: DefaultsFrom) -> int | None:
    """The iterations that are asked for; raises ExperimentError if epochs are too."""
    if options.iterations is not None and options.epochs is not None:
        raise ExperimentError(f"--iterations {options.iterations} and --epochs {options.epochs:g}: give one of them")
    return options.iterations


def _counts(options: DefaultsFrom) -> tuple[int, int, str]:
    """Identities and pictures in the training split that a command line or its file names, and the data set's name."""
    data = options.data
    if not data and options.config is not None:
        data = str(read_settings(options.config).get("data") or "")
    if not data:
        size = SIZES[DRAWN[options.preset]]
        return size.train_identities, size.train, "people"
    from dgnet_platform.data.store import Store  # Parquet: a command line without --data does without it

    store = Store.open(data)
    return needed_classes(store, hold_out=False), store.count("train"), store.info.dataset


def read_settings(path: Path) -> Mapping[str, Any]:
    """The settings in a file of --config; raises ExperimentError for a file that holds no such thing."""
    return _read_yaml("--config", path, "settings with their values, such as keep: 3")


def _read_yaml(option: str, path: Path, needed: str) -> Mapping[str, Any]:
    try:
        content = resolved(str(path)).read_bytes()  # YAML is UTF-8 or 16, whatever the locale
        values = yaml.safe_load(content) or {}
    except yaml.reader.ReaderError as error:
        raise ExperimentError(f"{option} {path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except (OSError, yaml.YAMLError) as error:
        raise ExperimentError(f"{option} {path}: {error}") from None
    if not isinstance(values, Mapping):
        raise ExperimentError(f"{option} {path}: {needed} are needed")
    return values


def _with_file(options: DefaultsFrom, default: Kind) -> Kind:
    """An experiment with the settings of the file of --config, if there is one, in place of the preset's.

    Raises:
        ExperimentError: it is no YAML file, has settings that do not exist, or others than the command line's.
    """
    path = options.config
    if path is None:
        return default
    values = read_settings(path)
    model = values.get("model")
    lengths = [(option, "iterations") for option in ("iterations", "epochs", "linear_batch_size")]
    for option, name in [*lengths, ("linear_batch_size", "batch_size")]:
        given, fixed = getattr(options, option, None), model.get(name) if isinstance(model, Mapping) else None
        if given is not None and fixed not in (None, getattr(default.model, name)):
            asked = f"--{option.replace('_', '-')} {given:g}"
            raise ExperimentError(f"{asked}, but --config {path} has model.{name}: {fixed}: give one of them")
    return _with_values("--config", path, values, default)


def with_settings(path: Path, experiment: DGNetExperiment) -> DGNetExperiment:
    """An experiment with the settings of a file in place of its own, at its own length.

    How BatchNorm's statistics are estimated before an evaluation stays its own: that is how runs are measured, and a
    search measures otherwise than its preset.

    Raises:
        ExperimentError: it is no YAML file, or has settings that do not exist or that no row has, or another length.
    """
    values = _read_yaml("--settings", path, "settings with their values, below model or baseline")
    if other := values.keys() - {"model", "baseline"}:
        raise ExperimentError(f"--settings {path} has {min(other)}: rows differ in model and baseline alone; remove it")
    changed = _with_values("--settings", path, values, experiment)
    changed = replace(changed, model=replace(changed.model, precise_batches=experiment.model.precise_batches))
    if changed.model.iterations != experiment.model.iterations:
        raise ExperimentError(
            f"--settings {path} has model.iterations: {changed.model.iterations}, but runs have"
            f" {experiment.model.iterations:,}: pass --iterations {changed.model.iterations}"
        )
    return changed


def _with_values(option: str, path: Path, values: Mapping[str, Any], default: Kind) -> Kind:
    try:
        kind: Any = type(default)
        return from_dict(kind[type(default.model)], _merged(to_dict(default), values))
    except ValueError as error:
        raise ExperimentError(f"{option} {path}: {error}") from None


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
