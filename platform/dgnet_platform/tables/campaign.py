"""The runs of tables: what is missing is trained, as trials of a search are, and nothing twice.

A table's run is the run that `jobs/train_market.py` would make of the same experiment, in the same folder: either finds
what the other has trained. All that is known of it is there, so a command that was killed resumes.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dgnet_core.methods import method_of
from dgnet_platform.compute.placement import Placement
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError, TrackingError
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.evaluate import evaluate
from dgnet_platform.evaluation.results import JSON, replacing, write
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.checkpoint import CheckpointError
from dgnet_platform.runs.experiment import AnyExperiment, TaughtExperiment
from dgnet_platform.runs.journal import Tail
from dgnet_platform.runs.provenance import training_digest
from dgnet_platform.runs.run import RECORD, RESULTS, STOP, Run
from dgnet_platform.runs.tracking_uri import default_uri
from dgnet_platform.search import prefixes
from dgnet_platform.search.prefixes import link_prefix
from dgnet_platform.search.trial import TrialProgress, tag_prefix
from dgnet_platform.storage.files import write_whole
from dgnet_platform.storage.serialize import flat, to_dict
from dgnet_platform.tables.offline import pack_offline
from dgnet_platform.tables.plan import RunsPlan, teacher_needed
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun, open_run, status_of, uri_of
from dgnet_platform.tracking.models import log_results
from dgnet_platform.tracking.shipping import ship
from dgnet_platform.training.plan import NamedRun, make_plan, name_run, named_teacher, outcome_of_finished

Plan = TypeVar("Plan", bound=RunsPlan)

_log = logging.getLogger(__name__)


class Machines(Protocol):
    """Where runs are trained."""

    placement: Placement
    """What each run has."""

    def train(self, folders: Sequence[Path], sharing: bool, over: Callable[[Path], None]) -> None:
        """Train the runs in some folders, and tell of each that is over; `sharing` as for `run_trial`."""
        ...

    def do(self, work: Callable[..., None], tasks: Sequence[tuple[Any, ...]]) -> None:
        """Call a function with each of some arguments."""
        ...


class CampaignError(ExperimentError):
    """Runs that cannot stand in one table; the message names them and what to do."""


@dataclass(frozen=True, kw_only=True)
class State:
    """How a run of a table stands."""

    run: Run | None
    """None: it has no folder yet."""
    finished: bool
    reason: str
    """Why it is not finished."""
    iterations: int
    """Iterations done."""

    @property
    def name(self) -> str:
        """The run's, or a dash."""
        return self.run.name if self.run is not None else "-"


class Campaign(Generic[Plan]):
    """The runs that tables consist of."""

    def __init__(self, plan: Plan, folder: Path, *, any_code: bool = False):
        """Look at what is there; nothing is changed.

        Args:
            plan: what is needed.
            folder: of the report; it asks runs to stop.
            any_code: take runs that other code has trained.
        """
        self.plan, self.folder, self.any_code = plan, folder, any_code
        self.tracked: TrackedRun | None = None
        self._finished: dict[AnyExperiment, State] = {}
        self._named: dict[AnyExperiment, NamedRun] = {}
        self._made: dict[str, Store] = {}
        self._tails: dict[Path, Tail] = {}
        self._lock = threading.Lock()  # the terminal asks while runs are trained

    # ------------------------------------------------------------------------------------------------------------
    # What is there

    def state(self, experiment: AnyExperiment) -> State:
        """How a run stands.

        Raises:
            CampaignError: it was trained by other code.
            ExperimentError, StoreError, CheckpointError: it cannot be trained as asked.
        """
        if experiment in self._finished:
            return self._finished[experiment]
        named = self._name(experiment)
        if named is None:
            return State(run=None, finished=False, reason="not started: what it learns from is missing", iterations=0)
        run = Run.find(named.folder)
        if run is None:
            return State(run=None, finished=False, reason="not started", iterations=0)
        self._check_code(run)
        if (run.folder / RESULTS / JSON).exists() and (outcome := outcome_of_finished(run)) is not None:
            found = State(run=run, finished=True, reason="", iterations=outcome.iteration)
            return self._finished.setdefault(experiment, found)
        progress = TrialProgress.read(run.folder)
        with self._lock:
            tail = self._tails.setdefault(run.folder, Tail(run.folder))
            for _ in tail.read():
                pass
        reason = f"{progress.ending or 'unfinished'} {progress.reason}".strip()
        return State(run=run, finished=False, reason=reason, iterations=tail.iteration)

    def _name(self, experiment: AnyExperiment) -> NamedRun | None:
        """Which run an experiment is; None: that is not known before its teacher is trained and its store made."""
        if experiment not in self._named:
            teacher, store = self._teacher(experiment), self._store_at(experiment.data)
            if store is None or (teacher is None and teacher_needed(experiment) is not None):
                return None
            self._named[experiment] = name_run(experiment, teacher=teacher, store=store)
        return self._named[experiment]

    def _store_at(self, location: str) -> Store | None:
        """A store; None: it is not made yet."""
        if location in self.plan.generators and location not in self._made and Path(location).exists():
            self._made[location] = Store.open(location)
        return self.plan.stores.get(location) or self._made.get(location)

    def _check_code(self, run: Run) -> None:
        if run.code != training_digest() and not self.any_code:
            raise CampaignError(
                f"run {run.folder} was trained by other code ({run.code[:8] or 'unknown'}, this is"
                f" {training_digest()[:8]}): name another --storage, move the run, or take it with --any-code"
            )

    def _teacher(self, experiment: AnyExperiment) -> Path | None:
        """The teacher that a run needs, if it is trained."""
        if not isinstance(experiment, TaughtExperiment) or not experiment.model.needs_teacher:
            return None
        needed = teacher_needed(experiment)
        if needed is None:
            return named_teacher(experiment)
        state = self.state(needed)
        if not state.finished or state.run is None:
            return None
        return state.run.last_checkpoint

    # ------------------------------------------------------------------------------------------------------------
    # Training

    @property
    def stop_file(self) -> Path:
        """A file that asks all runs to save and stop."""
        return self.folder / STOP

    @property
    def stop_asked(self) -> bool:
        """Whether that was asked for."""
        return self.stop_file.exists()

    def ask_to_stop(self) -> None:
        """Have all runs save and stop."""
        self.stop_file.touch()

    def open(self, settings: dict[str, Any], base: AnyExperiment, kind: str = "tables") -> TrackedRun:
        """Open the campaign's own run in MLflow, above its runs.

        Args:
            settings: what it was asked for.
            base: says where MLflow is.
            kind: what the runs are for.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        known = self.folder / "mlflow_run"
        self.tracked = open_run(
            base.tracking_uri or default_uri(base.storage),
            self.plan.own_store,
            name=self.folder.name if self.folder.name.startswith(kind) else f"{kind}-{self.folder.name}",
            folder=self.folder,
            params=flat(settings),
            tags={"dgnet.kind": kind},
            known=known.read_text() if known.exists() else None,
        )
        write_whole(known, self.tracked.id.encode())
        return self.tracked

    def train(self, machines: Machines, say: Callable[[str], None]) -> None:
        """Train what is missing: teachers, then what learns from them, then what learns from generated pictures.

        At the end finished runs are tested on other stores than their own, where rows ask for it.

        Args:
            machines: where.
            say: told of each run that is over.

        Raises:
            ExperimentError, TrackingError: a run cannot be made; the same command resumes.
        """
        self.stop_file.unlink(missing_ok=True)
        stages = (self.plan.teachers, False), (self.plan.experiments, True), (self.plan.offline, False)
        for experiments, sharing in stages:
            if experiments is self.plan.offline:
                machines.do(pack_offline, self._undrawn)
            missing = [
                experiment
                for experiment in experiments
                if not self.state(experiment).finished and self._name(experiment) is not None
            ]
            if missing:
                folders = [self._prepare(experiment, machines.placement) for experiment in missing]
                machines.train(folders, sharing, lambda folder: self._over(folder, say))
            if self.stop_asked:
                return
        machines.do(test_on, self.untested)

    @property
    def _undrawn(self) -> list[tuple[Path, str, int, Path]]:
        """Stores of generated pictures that are missing, as `pack_offline` takes them."""
        tasks: list[tuple[Path, str, int, Path]] = []
        for location, generator in self.plan.generators.items():
            state = self.state(generator)
            if state.finished and state.run is not None and not Path(location).exists():
                tasks.append((state.run.last_checkpoint, generator.data, generator.model.num_classes, Path(location)))
        return tasks

    def _over(self, folder: Path, say: Callable[[str], None]) -> None:
        progress = self.close(folder)
        say(f"{folder.name}: {progress.ending or 'failed'} {progress.reason}".strip())

    def _prepare(self, experiment: AnyExperiment, placement: Placement) -> Path:
        """Make, or open again, a run; returns its folder."""
        named = self._name(experiment)
        assert named is not None
        placed = replace(
            named.experiment,
            workers=str(placement.workers),
            gpus=bool(placement.workers and placement.gpus),
            threads=experiment.threads or (0 if placement.gpus else placement.cpus),
        )
        archive = archive_of(named.experiment)
        if archive is not None:
            archive.fetch(named.folder)
        plan = make_plan(replace(named, experiment=placed))
        try:
            named.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExperimentError(f"--storage: {named.folder} cannot be made ({error})") from None
        existing = plan.existing
        if existing is None and (found := self._searched(named)) is not None:
            link_prefix(found, named.folder)
        uri = placed.tracking_uri or default_uri(placed.storage)
        if existing is not None and not placed.tracking_uri:
            uri = uri_of(existing, uri)
        tracked = open_run(
            uri,
            named.store,
            name=named.folder.name,
            folder=named.folder,
            params=flat(to_dict(placed)),
            tags={
                "dgnet.kind": named.identity.kind,
                "dgnet.teacher": str(named.teacher or ""),
                "dgnet.seed": str(experiment.model.seed),
                **({"mlflow.parentRunId": self.tracked.id} if self.tracked is not None else {}),
            },
            known=existing.mlflow_run if existing is not None else None,
            stop_asked=self.stop_file.exists,
        )
        Run(
            folder=named.folder,
            experiment=placed,
            identity=named.identity.values(),
            teacher=str(named.teacher) if named.teacher else None,
            origin=existing.origin if existing else None,
            tracking_uri=tracked.uri,
            mlflow_experiment=tracked.experiment,
            mlflow_run=tracked.id,
            stop_file=str(self.stop_file),
            code=existing.code if existing else training_digest(),
        ).save()
        progress = TrialProgress.read(named.folder)
        if plan.outcome is None and progress.ending == "finished":  # its results or last checkpoint were moved away
            progress.update(ending=None)
        return named.folder

    def _searched(self, named: NamedRun) -> Path | None:
        """The last checkpoint of the same run that a search has trained to its end, with the same code."""
        for record in sorted(Path(named.experiment.storage).glob(f"*/{RECORD}")):
            with suppress(ExperimentError, CheckpointError, OSError):
                run = Run.read(record.parent)
                if run.identity == named.identity.values() and run.code == training_digest():
                    checkpoint.verify(run.last_checkpoint)
                    return run.last_checkpoint
        return None

    @property
    def untested(self) -> list[tuple[Path, str, Path]]:
        """Finished runs that rows want tested on other stores than their own, as `test_on` takes them."""
        wanted: list[tuple[Path, str, Path]] = []
        for experiment, location in self.plan.tests:
            state = self.state(experiment)
            if state.finished and state.run is not None:
                out = results_of(state.run, self.plan.stores[location])
                if not (out / JSON).exists():
                    wanted.append((state.run.folder, location, out))
        return list(dict.fromkeys(wanted))

    def missing(self, experiment: AnyExperiment, tested_on: str) -> str:
        """Why a run has no figures on a store yet; empty: it has."""
        state = self.state(experiment)
        if not state.finished or state.run is None:
            return state.reason
        tested = (results_of(state.run, self.plan.stores[tested_on]) / JSON).exists()
        return "" if tested else f"not tested on {tested_on}"

    def catch_up(self) -> None:
        """Tell MLflow what it missed of runs and prefixes that are over: it was away, or the command was killed.

        These are the ones that it shows as running. A run that `jobs/train_market.py` alone has trained is left to that
        command, and one whose server is still away to the next command.
        """
        unaware: dict[tuple[str, str], set[str]] = {}  # by server and MLflow's experiment

        def missed(run: Run) -> bool:
            key = run.tracking_uri, run.mlflow_experiment
            if key not in unaware:
                try:
                    unaware[key] = TrackedRun.of(run).running()
                except UNREACHABLE as error:
                    _log.warning("MLflow at %s was not told of all runs: %s", run.tracking_uri, error)
                    unaware[key] = set()
            return run.mlflow_run in unaware[key]

        runs = [run for experiment in self.plan.all_experiments if (run := self.state(experiment).run) is not None]
        progress = [TrialProgress.read(run.folder) for run in runs]
        for folder in sorted({Path(found.prefix) for found in progress if found.prefix}):
            if (prefix := Run.find(folder)) is not None and missed(prefix):
                prefixes.catch_up(prefix)
        for run, found in zip(runs, progress, strict=True):
            if found.over and missed(run):
                self.close(run.folder)

    def close(self, folder: Path) -> TrialProgress:
        """Tell MLflow how a run ended, with its results; should it be away, `catch_up` does it."""
        run, progress = Run.read(folder), TrialProgress.read(folder)
        try:
            if ship(run, lambda: True, patience=5):
                tracked = TrackedRun.of(run)
                tag_prefix(tracked, progress)
                if progress.ending == "finished" and (folder / RESULTS / JSON).exists():
                    log_results(tracked, run)
                tracked.close(status_of(progress.ending), progress.reason)
        except (*UNREACHABLE, TrackingError) as error:
            _log.warning("MLflow was not told how %s ended: %s", run.name, error)
        return progress


def results_of(run: Run, store: Store) -> Path:
    """Folder of a run's evaluation on query and gallery of a store."""
    own = run.identity["fingerprint"] == store.info.fingerprint
    return run.folder / (RESULTS if own else f"{RESULTS}-{store.info.fingerprint[:12]}")


def test_on(folder: Path, store: str, out: Path) -> None:
    """Evaluate a finished run on query and gallery of another store."""
    run = Run.read(folder)
    path = run.last_checkpoint
    draws = method_of(run.experiment.model).draw is not None  # else it is a teacher
    config = EvaluateConfig(
        store=(store,),
        out=out,
        checkpoint=path if draws else None,
        teacher=None if draws else path,
        queries_shown=0,
        interpolations=False,
        failures=False,
        swap_pairs=0,
    )
    with replacing(out) as partial:
        write(evaluate(config, lambda *_: None), partial)
