"""A search from its base experiment to its leaderboard, as the driver sees it.

The study says which trials there are; Ray Tune only runs them. Each start of the driver makes a new Tune experiment for
the trials that are not over, and all else is found in their folders: so nothing of Tune's own has to survive a kill.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from mlflow.entities import Metric
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.search import Searcher

from dgnet_platform import journal, launch, prefix, tracking
from dgnet_platform.datasets.store import Store
from dgnet_platform.experiment import DGNetExperiment, ExperimentError, differences, flat, identity_of
from dgnet_platform.halving import Stopping, ramp_end, rungs_of
from dgnet_platform.machines import nodes
from dgnet_platform.placement import Placement, place
from dgnet_platform.plain import to_dict
from dgnet_platform.presets import Preset, dgnet_experiment
from dgnet_platform.run import Judging, Run, folder_of
from dgnet_platform.search_report import FAILED, FINISHED, STOPPED, TrialRow, figures, front, leaderboard, ranked
from dgnet_platform.shipping import ship
from dgnet_platform.space import PARAMETERS, Space
from dgnet_platform.study import Study
from dgnet_platform.swaps import people_of
from dgnet_platform.training import digest_of
from dgnet_platform.trial import Progress, Trial
from dgnet_platform.version import code_version

METRIC = "val/best/mAP"
"""What trials are compared by: mAP on the held-out identities, with the weight of f_fine that is best for it."""
SECOND: dict[str, str] = {"swap": "val/swap/SSIM", "reconstruction": "val/reconstruction/SSIM"}
"""Metrics of second objectives."""
BETA, METRIC_BY_BETA = "val/best/beta", "val/mAP_by_beta"
BOOK, STOP, TUNE = "verdicts.jsonl", "stop", "tune"
"""In a search's folder: what was decided at rungs, a file that stops all trials, and what Ray Tune leaves."""
PATIENCE = 120.0
"""Seconds that a search waits for MLflow before it gives up."""

Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How trials are run and compared."""

    stopping: Stopping = field(default_factory=Stopping)
    """When trials are stopped early."""
    second: Literal["none", "swap", "reconstruction"] = "none"
    """A second objective beside mAP: the SSIM of swaps with the true pictures (drawn people only), or of held-out
    pictures that are drawn from another one of the same person. The best compromises are then the result, and trials
    run to their ends (--stopping.kind none)."""
    seed: int = 0
    """Of what is tried."""
    sharing: bool = True
    """Train what trials have in common before their warm-up once. It changes no result, only how long they take."""
    workers_per_trial: int = 0
    """Ray Train workers of a trial, each with its share of the batch; 0 or 1: its own process trains, which saves half
    a minute a trial."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial, over all its workers."""
    concurrent: int = 0
    """Trials at once; 0: as many as fit, on CPUs alone one a machine."""
    retries: int = 2
    """How often a trial starts again from its newest checkpoint when its process dies."""
    prefix_gib: float = 50.0
    """GiB that shared prefixes may take in the storage folder; those longest unused go first."""
    warm_start: tuple[str, ...] = ()
    """Earlier studies as PATH:STUDY, whose best trials are tried after the first one."""

    def __post_init__(self) -> None:
        for name in ("seed", "workers_per_trial", "gpus_per_trial", "concurrent", "retries", "prefix_gib"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 or more")
        if self.second != "none" and self.stopping.kind != "none":
            raise ValueError(
                f"second {self.second}: early stopping would judge trials by mAP alone: pass --stopping.kind none too"
            )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Metrics that trials are compared by, the larger the better."""
        return METRIC, *([SECOND[self.second]] if self.second != "none" else [])


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search comes down to; nothing is changed by making one."""

    name: str
    folder: Path
    base: DGNetExperiment
    """What all trials have in common; its model is the first trial's."""
    space: Space
    config: SearchConfig
    store: Store
    preset: Preset
    """Where the base's settings come from."""
    teacher: Path | None
    teacher_digest: str | None
    identity: Mapping[str, Any]
    """All that decides its results."""
    distances: tuple[int, ...]
    """Of the rungs from each trial's own ramp end."""

    @property
    def tracking_uri(self) -> str:
        """MLflow's store or server."""
        return self.base.tracking_uri or tracking.default_uri(self.base.storage)


def plan_search(
    base: DGNetExperiment,
    space: Space,
    config: SearchConfig,
    *,
    name: str = "",
    preset: Preset = "laptop",
    teacher: Path | None,
) -> SearchPlan:
    """Find out what a search comes down to.

    Args:
        base: what all trials have in common, on a store that exists.
        space: what is searched.
        config: how.
        name: of the search; none: made of the data set and a hash of all that decides the results.
        preset: where the base's settings come from.
        teacher: the teacher's checkpoint.

    Raises:
        ExperimentError, SpaceError, StoreError, CheckpointError: it cannot be run as asked.
    """
    if not base.hold_out:
        raise ExperimentError("--no-hold-out: trials are compared on held-out identities, a search needs them")
    store = Store.open(base.data)
    if config.second == "swap" and people_of(store) is None:
        raise ExperimentError(
            f"--second swap: the true swaps of the pictures in {store.location} are not known, only those of drawn"
            " people: use --second reconstruction"
        )
    space.check(base.model, config.stopping)
    digest = digest_of(teacher) if teacher else None
    identity = {
        "dataset": store.info.dataset,
        "fingerprint": store.info.fingerprint,
        "teacher": digest,
        "model": to_dict(base.model),
        "space": space.values(),
        "stopping": to_dict(config.stopping),
        "objectives": list(config.objectives),
        "seed": config.seed,
        "ranks": max(1, config.workers_per_trial),
    }
    hashed = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    name = name or f"{store.info.dataset}-search-{hashed}"
    return SearchPlan(
        name=name,
        folder=folder_of(base.storage, name),
        base=base,
        space=space,
        config=config,
        store=store,
        preset=preset,
        teacher=teacher,
        teacher_digest=digest,
        identity=identity,
        distances=space.distances(base.model, config.stopping),
    )


class Search:
    """A search under way."""

    def __init__(self, plan: SearchPlan, placement: Placement):
        """Open the study and MLflow's runs; the search's folder must be there, and nobody else be in it.

        Raises:
            StudyError, ExperimentError, TrackingError: it cannot be gone on with.
        """
        self.plan, self.placement = plan, placement
        self.stop_file = plan.folder / STOP
        self.stop_file.unlink(missing_ok=True)
        self.study = Study(
            plan.folder,
            plan.name,
            plan.identity,
            plan.space,
            plan.base.model,
            seed=plan.config.seed,
            objectives=len(plan.config.objectives),
            concurrent=placement.concurrent > 1,
            warm_start=plan.config.warm_start,
        )
        self._check_folders()
        self.tracking_uri = plan.tracking_uri
        self.connected, self._mlflow_experiment = tracking.connect(
            self.tracking_uri, f"dgnet-{plan.store.info.dataset}"
        )
        self.mlflow_run = self._open()
        self._seen: dict[int, _Seen] = {}

    # --------------------------------------------------------------------------------------------------------
    # Trials

    def folder(self, number: int) -> Path:
        """Of a trial."""
        return folder_of(self.plan.base.storage, f"{self.plan.name}-{number:03d}")

    def experiment(self, number: int) -> DGNetExperiment:
        """Of a trial that was asked for."""
        plan, placement = self.plan, self.placement
        model = plan.space.apply(plan.base.model, self.study.values(number))
        return replace(
            plan.base,
            name=self.folder(number).name,
            model=model,
            evaluate_also=rungs_of(model, plan.distances),
            workers=str(placement.workers),
            gpus=bool(placement.workers and placement.gpus),
            threads=plan.base.threads or (0 if placement.gpus else placement.cpus),
        )

    def prepare(self, number: int) -> Path:
        """Make, or open again, the run of a trial; returns its folder.

        Raises:
            ExperimentError: there is another run in its folder, or it cannot be written.
            TrackingError: MLflow was away for too long.
        """
        plan, folder = self.plan, self.folder(number)
        experiment = self.experiment(number)
        identity = identity_of(
            experiment,
            dataset=plan.store.info.dataset,
            fingerprint=plan.store.info.fingerprint,
            teacher=plan.teacher_digest,
            origin=None,
        ).values()
        run = Run.find(folder)
        if run is not None and differences(run.identity, identity):
            raise ExperimentError(f"{folder} holds another run than trial {number}: move it, or pass another --name")
        if run is not None:
            mlflow_run = run.mlflow_run
            self._patiently(lambda: tracking.reopen_run(self.connected, mlflow_run))
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ExperimentError(f"--storage: {folder} cannot be made ({error})") from None
            values = self.study.values(number)
            params = flat(to_dict(experiment)) | {f"search/{name}": value for name, value in values.items()}
            mlflow_run = self._patiently(
                lambda: tracking.open_run(
                    self.connected,
                    self._mlflow_experiment,
                    name=folder.name,
                    folder=folder,
                    params=params,
                    tags=self._tags("trial") | {"mlflow.parentRunId": self.mlflow_run, "dgnet.trial": str(number)},
                    store=plan.store,
                )
            )
        judging = Judging(
            book=str(plan.folder / BOOK),
            trial=number,
            rungs=experiment.evaluate_also,
            stopping=plan.config.stopping,
            metric=METRIC,
        )
        Run(
            folder=folder,
            experiment=experiment,
            identity=identity,
            teacher=str(plan.teacher) if plan.teacher else None,
            origin=run.origin if run else None,
            tracking_uri=self.tracking_uri,
            mlflow_experiment=run.mlflow_experiment if run else self._mlflow_experiment,
            mlflow_run=mlflow_run,
            role="trial",
            judging=judging if judging.rungs else None,
            stop_file=str(self.stop_file),
        ).save()
        self.study.note(number, folder=str(folder), mlflow_run=mlflow_run)
        return folder

    def conclude(self, number: int) -> None:
        """Tell study and MLflow how a trial ended; one that was only stopped stays as it is.

        A trial without an ending died more often than it may.
        """
        folder = self.folder(number)
        run, progress = Run.read(folder), Progress.read(folder)
        curve = {entry.iteration: entry.metrics for entry in journal.read(folder) if METRIC in entry.metrics}
        last = curve.get(progress.iteration, {})
        reason = progress.reason
        if progress.ending == "stopped":
            self._close(run, "KILLED", "stopped")
            return
        objectives = self.plan.config.objectives
        missing = [name for name in objectives if name not in last]
        if progress.ending == "finished" and missing:
            reason = f"it is finished and never reported {', '.join(missing)}"
        self._ship(run)
        self.study.note(
            number,
            iteration=progress.iteration,
            fork=progress.fork,
            prefix=progress.prefix,
            trained_prefix=progress.trained,
            reason=reason,
            beta=last.get(BETA),
        )
        zero = ramp_end(run.experiment.model)  # pyright: ignore[reportArgumentType]
        judged = {t - zero: curve[t][METRIC] for t in run.experiment.evaluate_also if t in curve}
        if progress.ending == "finished" and not missing:
            self._close(run, "FINISHED", "", last[METRIC])
            self.study.tell(number, "complete", values=[last[name] for name in objectives], curve=judged)
        elif progress.ending == "stopped early":
            self._close(run, "KILLED", f"stopped early: {reason}", last.get(METRIC))
            self.study.tell(number, "pruned", curve=judged)
        else:
            reason = reason or "its process died, more often than it may"
            self.study.note(number, reason=reason)
            self._close(run, "FAILED", reason)
            self.study.tell(number, "fail", curve=judged)
        prefix.collect(Path(self.plan.base.storage), int(self.plan.config.prefix_gib * 2**30))

    def settle(self) -> None:
        """Tell of trials that ended while nobody listened, and complete those that were only half asked for."""
        for number in self.study.running:
            self.study.again(number)
            if Run.find(self.folder(number)) is not None and Progress.read(self.folder(number)).over:
                self.conclude(number)

    # --------------------------------------------------------------------------------------------------------
    # Execution

    def run(self) -> None:
        """Run what is to be run, until it is done or somebody asks to stop.

        Raises:
            Exception: Tune, MLflow or the disk failed; the same search goes on from there.
        """
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output has a header that cannot be turned off
        for name in ("ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is told by the study
        place = self.plan.folder / TUNE
        shutil.rmtree(place, ignore_errors=True)
        feed = Feed(self)
        tuner = tune.Tuner(
            tune.with_resources(Trial, self.placement.resources),
            param_space={"sharing": self.plan.config.sharing, "gpus": self.placement.gpus},
            tune_config=tune.TuneConfig(
                search_alg=feed,
                num_samples=-1,
                max_concurrent_trials=self.placement.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(place),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.plan.config.retries),
            ),
        )
        tuner.fit()
        if feed.error is not None:
            raise feed.error

    def ask_to_stop(self) -> None:
        """Have all trials save and stop."""
        self.stop_file.touch()

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for it."""
        return self.stop_file.exists()

    # --------------------------------------------------------------------------------------------------------
    # Results

    def rows(self) -> list[TrialRow]:
        """All trials as the report needs them."""
        return [self._row(trial) for trial in self.study.trials]

    def _row(self, trial: FrozenTrial) -> TrialRow:
        number, folder = trial.number, self.folder(trial.number)
        progress = Progress.read(folder)
        seen = self._seen.setdefault(number, _Seen(folder))
        seen.update()
        given = self.study.values(number)
        base = self.plan.base.model
        values = {name: given.get(name, PARAMETERS[name].read(base)) for name in self.plan.space.searched}
        states = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: STOPPED, TrialState.FAIL: FAILED}
        marker = f"{METRIC_BY_BETA}/"
        return TrialRow(
            number=number,
            name=folder.name,
            state=states.get(trial.state, "saved" if progress.ending == "stopped" else progress.phase),
            reason=trial.user_attrs.get("reason", progress.reason),
            values=values,
            objective=trial.values[0] if trial.state == TrialState.COMPLETE else seen.figures.get(METRIC),
            second=seen.figures.get(SECOND.get(self.plan.config.second, "")),
            best_beta=seen.figures.get(BETA),
            iterations=max(seen.iteration, progress.iteration if progress.over else 0),
            shared_iterations=progress.fork,
            by_beta={float(k.removeprefix(marker)): v for k, v in seen.figures.items() if k.startswith(marker)},
        )

    def costs(self) -> dict[str, int]:
        """Iterations that were trained, and how many it would have been without prefixes, and without stopping."""
        rows = self.rows()
        progress = [Progress.read(self.folder(row.number)) for row in rows]
        own = sum(max(0, row.iterations - p.fork) for row, p in zip(rows, progress, strict=True))
        return {
            "spent": own + sum(p.trained for p in progress),
            "without_sharing": sum(row.iterations for row in rows),
            "without_stopping": sum(
                self.plan.base.model.iterations if row.state == STOPPED else row.iterations for row in rows
            ),
        }

    def best(self) -> int | None:
        """The number of the best finished trial."""
        finished = [row for row in ranked(self.rows()) if row.state == FINISHED and row.score is not None]
        return finished[0].number if finished else None

    def publish(self) -> Path | None:
        """Write the leaderboard, the pictures and the best trial's settings into the search's folder and to MLflow.

        Returns:
            The file of the best trial's settings, which `jobs/train_market.py --config` takes; None: there is none.

        Raises:
            OSError: the folder cannot be written. That MLflow is away is no error: the same command tells it later.
        """
        folder, rows, number = self.plan.folder, self.rows(), self.best()
        files = [folder / "leaderboard.csv"]
        leaderboard(rows).to_csv(files[0], index=False)
        if number is not None:
            files.append(folder / "best.yaml")
            files[1].write_text(self._settings_yaml(number))
        for old in folder.glob("front-*.yaml"):
            old.unlink()
        for row in front(rows):
            files.append(folder / f"front-{row.number:03d}.yaml")
            files[-1].write_text(self._settings_yaml(row.number))
        pictures = figures(self.study.study, rows)
        for name, picture in pictures.items():
            (folder / "figures").mkdir(exist_ok=True)
            picture.save(folder / "figures" / f"{name}.png")
        done = not self.study.missing and not self.study.running
        moment = int(time.time() * 1000)
        metrics = {f"search/iterations_{name}": float(value) for name, value in self.costs().items()}
        metrics |= {f"search/trials_{s}": float(sum(r.state == s for r in rows)) for s in (FINISHED, STOPPED, FAILED)}
        best = next((row for row in rows if row.number == number), None)
        if best is not None and best.score is not None:
            metrics |= {"search/best_mAP": best.score, "search/best_beta": best.best_beta or 0.0}
        try:
            for file in files:
                self.connected.log_artifact(self.mlflow_run, str(file))
            for name, picture in pictures.items():
                self.connected.log_image(self.mlflow_run, picture, artifact_file=f"figures/{name}.png")
            self.connected.log_batch(
                self.mlflow_run, metrics=[Metric(name, value, moment, len(rows)) for name, value in metrics.items()]
            )
            if best is not None:
                self.connected.set_tag(self.mlflow_run, "dgnet.best_trial", best.name)
            tracking.close_run(
                self.connected, self.mlflow_run, "FINISHED" if done else "KILLED", "" if done else "stopped"
            )
        except tracking.AWAY as error:
            _log.warning("MLflow was not told of the search's results: %s", error)
        return files[1] if number is not None else None

    def _settings_yaml(self, number: int) -> str:
        """What differs in a trial from the preset, whose name stands above."""
        plan = self.plan
        preset = to_dict(dgnet_experiment(plan.preset, plan.base.model.num_classes, plan.store.count("train")).model)
        model = to_dict(self.experiment(number).model)
        changed: dict[str, Any] = {}
        for path, (_, value) in differences({"model": preset}, {"model": model}).items():
            section = changed
            *above, name = path.split(".")
            for part in above:
                section = section.setdefault(part, {})
            section[name] = value
        head = f"# trial {number} of search {plan.name}; for jobs/train_market.py --preset {plan.preset} --config\n"
        return head + (yaml.safe_dump(changed, sort_keys=False) if changed else "{}\n")

    # --------------------------------------------------------------------------------------------------------
    # Details

    def _check_folders(self) -> None:
        """Refuse to go on without what was there."""
        for trial in self.study.trials:
            folder = self.folder(trial.number)
            if "folder" in trial.user_attrs and Run.find(folder) is None:
                raise ExperimentError(
                    f"trial {trial.number} of search {self.plan.name} was in {folder}, which is gone: restore it, name"
                    " the --storage that has it, or start anew with another --name"
                )

    def _tags(self, kind: str) -> dict[str, str]:
        info, code = self.plan.store.info, code_version()
        return {
            "dgnet.kind": kind,
            "dgnet.search": self.plan.name,
            "dgnet.dataset": info.dataset,
            "dgnet.data_fingerprint": info.fingerprint,
            "dgnet.drawn_people": str(bool(info.origin)).lower(),
            "dgnet.code": code,
            "dgnet.teacher": str(self.plan.teacher or ""),
        }

    def _open(self) -> str:
        """MLflow's run of the search, new or opened again."""
        known = self.study.study.user_attrs.get("mlflow_run")
        if known is not None:
            tracking.reopen_run(self.connected, known)
            return known
        plan = self.plan
        params = {f"space.{name}": str(dimension) for name, dimension in plan.space.dimensions.items()}
        config = flat({"search": to_dict(plan.config)}) | flat(to_dict(plan.base))
        run_id = tracking.open_run(
            self.connected,
            self._mlflow_experiment,
            name=plan.name,
            folder=plan.folder,
            params=params | config,
            tags=self._tags("search"),
            store=plan.store,
        )
        self.study.study.set_user_attr("mlflow_run", run_id)
        return run_id

    def _ship(self, run: Run) -> None:
        """Send what the trial's own process could not send any more."""
        ship(run, lambda: True, patience=5)

    def _close(self, run: Run, status: tracking.Status, reason: str, objective: float | None = None) -> None:
        """Close a trial's MLflow run, if MLflow listens: the search does not stop for it."""
        try:
            if objective is not None:
                moment = int(time.time() * 1000)
                self.connected.log_batch(run.mlflow_run, metrics=[Metric("objective", objective, moment, 0)])
            tracking.close_run(self.connected, run.mlflow_run, status, reason[:500])
        except tracking.AWAY as error:
            _log.warning("MLflow was not told how %s ended: %s", run.name, error)

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """The answer of MLflow, also when it is away for a moment."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except tracking.AWAY as error:
                if time.monotonic() > give_up or self.stop_asked:
                    raise tracking.TrackingError(
                        f"MLflow at {self.tracking_uri} was away for too long ({error}): start it, the same command"
                        " goes on"
                    ) from error
                time.sleep(3)


class _Seen:
    """What a trial's journal has said so far."""

    def __init__(self, folder: Path):
        self._tail = journal.Tail(folder)
        self.figures: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def iteration(self) -> int:
        return self._tail.iteration

    def update(self) -> None:
        with self._lock:
            for entry in self._tail.read():
                found = {name: value for name, value in entry.metrics.items() if name.startswith("val/")}
                self.figures = found or self.figures


class Feed(Searcher):
    """Gives Tune the study's trials one after the other, and the study Tune's word that one is over."""

    def __init__(self, search: Search):
        super().__init__()
        self._search = search
        self._left = search.study.running
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()
        self.error: Exception | None = None
        """What went wrong here; Tune would only log it."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The folder of the next trial; None: not now, but if one fails; FINISHED: there are no more."""
        search = self._search
        with self._lock:
            if search.stop_asked or self.error is not None:
                return Searcher.FINISHED
            try:
                if self._left:
                    number = self._left.pop(0)
                elif search.study.missing:
                    number = search.study.ask()
                else:
                    return None if self._numbers else Searcher.FINISHED
                folder = search.prepare(number)
            except Exception as error:
                self.error = error
                search.ask_to_stop()
                return Searcher.FINISHED
            self._numbers[trial_id] = number
            return {"folder": str(folder)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Tune's trial is over: whatever there is to know is in its folder."""
        with self._lock:
            number = self._numbers.pop(trial_id, None)
            if number is None:
                return
            try:
                self._search.conclude(number)
            except Exception as failure:
                self.error = failure
                self._search.ask_to_stop()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved by itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its own state down, which nobody reads


def place_trials(plan: SearchPlan) -> Placement:
    """Connect to Ray and place a search's trials; raises ExperimentError if none ever fits, or cannot be tracked."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    launch.connect()
    launch.check_tracking(plan.tracking_uri)
    config = plan.config
    return place(nodes(), workers=config.workers_per_trial, gpus=config.gpus_per_trial, concurrent=config.concurrent)
