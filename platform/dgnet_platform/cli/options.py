"""The options of the commands: read before anything heavy is imported."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from dgnet_platform.evaluation.config import CompareConfig
from dgnet_platform.runs.experiment import (
    DGNetExperiment,
    Experiment,
    Model,
    Places,
    Taught,
    TeacherExperiment,
    check_name,
)
from dgnet_platform.runs.presets import ComparedName, GeneratorName, Preset
from dgnet_platform.search.config import SearchConfig
from dgnet_platform.tables.config import TableName


@dataclass(frozen=True, kw_only=True)
class DefaultsFrom(Places):
    """What the defaults of all other settings depend on."""

    preset: Preset = "laptop"
    """laptop: small networks and pictures, minutes on two CPU cores; paper: the paper's run; release: the
    same as its authors' code really runs; strong-laptop and strong: with what re-id has learned since."""
    iterations: int | None = None
    """Length of a run or trial; warm-up, ramps and milestones scale with it. None: the preset's, and 400 for trials of
    the laptop's; DG-Net's other presets are as long as suits the data set."""
    epochs: float | None = None
    """The same in passes over the training split."""
    config: Path | None = None
    """A YAML file with settings that differ from the preset's, named as in --dry-run."""
    dry_run: bool = False
    """Show what would be done, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class LinearRule:
    """Batches of another size."""

    linear_batch_size: int | None = None
    """DG-Net's batch, by the linear rule (Goyal et al., 2017): as many epochs, all its learning rates in proportion to
    the preset's batch, the encoder's raised over the first 5 epochs. --iterations then counts batches of the preset's
    size. None: batch and rates are the preset's, on any number of workers."""


@dataclass(frozen=True, kw_only=True)
class DGNetDefaults(LinearRule, DefaultsFrom):
    """What the defaults of all other settings of DG-Net depend on."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(DefaultsFrom):
    """What is done with an experiment."""

    resume_from: Path | None = None
    """A checkpoint that a new run starts from, with its iteration and optimisers."""
    register: str | None = None
    """Publish the finished model in MLflow's registry under this name."""


@dataclass(frozen=True, kw_only=True)
class TrainDGNet(LinearRule, RunOptions, DGNetExperiment):
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
class RunsAtOnce:
    """Many runs of several seeds."""

    seeds: int = 1
    """With how many seeds, 0, 1, ..., each run is trained; from 2 on there is a deviation."""
    any_code: bool = False
    """Take runs that other code has trained."""
    concurrent: int = 0
    """Runs at once; 0: as many as fit, on CPUs alone one a machine."""
    workers_per_run: int = 0
    """Ray Train workers of a run; 0 or 1: its own process trains."""
    gpus_per_run: float = 0.0
    """GPUs of a run, over all its workers."""

    def check_runs(self) -> None:
        """Raise ValueError where a number is too small."""
        for name, least in (("seeds", 1), ("concurrent", 0), ("workers_per_run", 0), ("gpus_per_run", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: must be {least} or more")


@dataclass(frozen=True, kw_only=True)
class CompareGenerators(RunsAtOnce, CompareConfig):
    """Options of jobs/compare_generators.py."""

    train: tuple[ComparedName, ...] = ()
    """Generators that are trained first; runs that are finished are found again."""
    preset: Preset = "laptop"
    """Of those; the strong ones are those of their size, but DG-Net's."""
    iterations: int | None = None
    """Length of those runs; None: the preset's."""
    storage: str = field(default_factory=lambda: Places().storage)
    """Folder of those runs."""
    tracking_uri: str = ""
    """MLflow's store or server for those runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_runs()


@dataclass(frozen=True, kw_only=True)
class TuneMarket(LinearRule, DefaultsFrom, Taught, SearchConfig):
    """Options of jobs/tune_market.py."""

    trials: str = ""
    """How many trials are wanted in all: 8 (laptop) or 64 (paper) by default; +N: so many more, once those that were
    wanted are done."""
    space: Path | None = None
    """A YAML file with what is searched: by parameter a value that fixes it, {low: ..., high: ..., log: ..., step: ...}
    or {choices: [...]}."""
    set: tuple[str, ...] = ()
    """The same for one parameter each, such as alpha=0.2 'prim={low: 1, high: 4}'; a name alone, such as triplet or
    ema, stands for the values that public work suggests."""
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
class PaperTables(RunsAtOnce, LinearRule, DefaultsFrom, Taught):
    """Options of jobs/paper_tables.py."""

    seeds: int = 3
    """With how many seeds, 0, 1, ..., each row is trained; from 2 on there is a deviation."""
    tables: tuple[TableName, ...] = ("ablation", "labels", "state_of_the_art")
    """Which tables; sensitivity trains on fewer identities, and transfer needs --stores."""
    rows: tuple[str, ...] = ()
    """These rows of them alone, by their labels, and those that they are compared with; none: all."""
    stores: tuple[str, ...] = ()
    """Further stores, folders or URIs, for the table of transfer."""
    settings: tuple[Path, ...] = ()
    """For the table of settings: YAML files of what differs from the preset, such as runs/SEARCH/best.yaml."""
    compared: Path = Path("results/compared")
    """With table generators: where jobs/compare_generators.py wrote Table 2 and Figure 3, which the report takes in."""
    partial: bool = False
    """Train nothing: report what there is, with gaps."""
    seconds_before: float | None = None
    """Seconds of an iteration before the warm-up start, for the plan that --dry-run shows."""
    seconds_after: float | None = None
    """The same after it."""

    def __post_init__(self) -> None:
        check_name(self.name)
        self.check_runs()
        if not self.tables:
            raise ValueError("tables: name one at least")
        if ("settings" in self.tables) != bool(self.settings):
            raise ValueError("--tables settings and --settings FILE, such as runs/SEARCH/best.yaml, go together")
        if (self.seconds_before is None) != (self.seconds_after is None):
            raise ValueError("seconds_before and seconds_after: give both or none")
