"""A search under way, as the driver sees it.

The study says which trials there are; Ray Tune only runs them. Each start of the driver makes a new Tune experiment for
the trials that are not over, and all else is found in their folders: so nothing of Tune's own has to survive a kill.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher

from dgnet_core.dgnet.schedule import ramp_end
from dgnet_platform.compute import cluster as machines
from dgnet_platform.compute.placement import Placement, place
from dgnet_platform.errors import ExperimentError, TrainingError
from dgnet_platform.runs import journal
from dgnet_platform.runs.archive import archive_of, follow
from dgnet_platform.runs.experiment import DGNetExperiment, identity_of
from dgnet_platform.runs.run import Run
from dgnet_platform.search import prefixes as prefix
from dgnet_platform.search.config import BETA, METRIC
from dgnet_platform.search.plan import SearchPlan
from dgnet_platform.search.stopping import RungJudge, rungs_of
from dgnet_platform.search.study import DONE, Study
from dgnet_platform.search.trial import Trial, TrialProgress, link
from dgnet_platform.storage.serialize import differences, flat, to_dict
from dgnet_platform.tracking import client as tracking
from dgnet_platform.tracking.shipping import ship

BOOK, STOP, TUNE = "verdicts.jsonl", "stop", "tune"
"""In a search's folder: what was decided at rungs, a file that stops all trials, and what Ray Tune leaves."""
HOPELESS = 3
"""Trials that may fail before any has come to an end."""

_log = logging.getLogger(__name__)


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
        self.archive = archive_of(plan.base)
        self._bring_back()
        self._check_folders()
        self.tracking_uri = plan.tracking_uri
        self.connected, self._mlflow_experiment = tracking.connect(
            self.tracking_uri, f"dgnet-{plan.store.info.dataset}"
        )
        self.mlflow_run = self._open()

    # --------------------------------------------------------------------------------------------------------
    # Trials

    def experiment(self, number: int) -> DGNetExperiment:
        """Of a trial that was asked for."""
        plan, placement = self.plan, self.placement
        model = plan.model(self.study.values(number))
        return replace(
            plan.base,
            name=plan.trial_folder(number).name,
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
        plan, folder = self.plan, self.plan.trial_folder(number)
        experiment = self.experiment(number)
        identity = identity_of(
            experiment,
            dataset=plan.store.info.dataset,
            fingerprint=plan.store.info.fingerprint,
            teacher=plan.teacher_digest,
            origin=None,
        ).values()
        noted = self.study.notes(number)
        if self.archive is not None and "folder" not in noted:  # the archived study may be a moment older than this
            self.archive.try_to_fetch(folder)
        run = Run.find(folder)
        if run is not None and differences(run.identity, identity):
            raise ExperimentError(f"{folder} holds another run than trial {number}: move it, or pass another --name")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExperimentError(f"--storage: {folder} cannot be made ({error})") from None
        known = run.mlflow_run if run is not None else noted.get("mlflow_run")
        mlflow_run = tracking.patiently(
            lambda: self._open_trial(number, experiment, known), self.tracking_uri, stop_asked=lambda: self.stop_asked
        )
        Run(
            folder=folder,
            experiment=experiment,
            identity=identity,
            teacher=str(plan.teacher) if plan.teacher else None,
            origin=run.origin if run else None,
            tracking_uri=self.tracking_uri,
            mlflow_experiment=self._mlflow_experiment,
            mlflow_run=mlflow_run,
            role="trial",
            stop_file=str(self.stop_file),
        ).save()
        self.study.note(number, folder=str(folder), mlflow_run=mlflow_run)
        return folder

    def judge(self, number: int) -> RungJudge | None:
        """What stops a trial early; None: nothing does."""
        rungs = self.experiment(number).evaluate_also
        book, rule = self.plan.folder / BOOK, self.plan.config.stopping
        return RungJudge(book=book, trial=number, rungs=rungs, rule=rule, metric=METRIC) if rungs else None

    def _open_trial(self, number: int, experiment: DGNetExperiment, known: str | None) -> str:
        """MLflow's run of a trial, new or opened again."""
        if known is not None and not tracking.is_lost(self.connected, self.tracking_uri, known):
            tracking.reopen_run(self.connected, known)
            return known
        folder, values = self.plan.trial_folder(number), self.study.values(number)
        return tracking.open_run(
            self.connected,
            self._mlflow_experiment,
            name=folder.name,
            folder=folder,
            params=flat(to_dict(experiment)) | {f"search/{name}": value for name, value in values.items()},
            tags=self._tags("trial") | {"mlflow.parentRunId": self.mlflow_run, "dgnet.trial": str(number)},
            store=self.plan.store,
        )

    def conclude(self, number: int) -> None:
        """Tell study and MLflow how a trial ended; one that was only stopped stays as it is.

        A trial without an ending died more often than it may.
        """
        folder = self.plan.trial_folder(number)
        run, progress = Run.read(folder), TrialProgress.read(folder)
        curve = {entry.iteration: entry.metrics for entry in journal.read(folder) if METRIC in entry.metrics}
        last = curve.get(progress.iteration, {})
        reason = progress.reason
        if progress.ending == "stopped":
            self._tell_mlflow(run, "KILLED", "stopped")
            return
        objectives = self.plan.config.objectives
        missing = [name for name in objectives if name not in last]
        if progress.ending == "finished" and missing:
            reason = f"it is finished and never reported {', '.join(missing)}"
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
            self.study.tell(number, "complete", values=[last[name] for name in objectives], curve=judged)
        elif progress.ending == "stopped early":
            self.study.tell(number, "pruned", curve=judged)
        else:
            self.study.note(number, reason=reason or "its process died, more often than it may")
            self.study.tell(number, "fail", curve=judged)
        self._tell_mlflow_of(number)
        if self.archive is not None:
            self.archive.try_to_push(folder)
        prefix.collect(Path(self.plan.base.storage), int(self.plan.config.prefix_gib * 2**30))

    def settle(self) -> None:
        """Tell of trials that ended while nobody listened, and complete those that were only half asked for."""
        for number in self.study.running:
            self.study.again(number)
            folder = self.plan.trial_folder(number)
            if Run.find(folder) is not None and TrialProgress.read(folder).over:
                self.conclude(number)
        self._catch_up()

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
        with self._followed():
            tuner.fit()
        self._catch_up()
        if feed.error is not None:
            raise feed.error

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """Meanwhile, copy the search's own folder to the archive whenever it changes."""
        if self.archive is None:
            yield
            return
        over = threading.Event()
        archiving = threading.Thread(target=follow, args=(self.archive, self.plan.folder, over.is_set), daemon=True)
        archiving.start()
        try:
            yield
        finally:
            over.set()
            archiving.join()

    def ask_to_stop(self) -> None:
        """Have all trials save and stop."""
        self.stop_file.touch()

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for it."""
        return self.stop_file.exists()

    def bring_to_archive(self) -> bool:
        """Copy what is not in the archive yet of the search, its trials and their prefixes; returns whether all is."""
        if self.archive is None:
            return True
        trials = [self.plan.trial_folder(trial.number) for trial in self.study.trials]
        prefixes = {Path(found) for folder in trials if (found := TrialProgress.read(folder).prefix)}
        return all(
            self.archive.try_to_push(folder, prune=folder not in prefixes)
            for folder in (*sorted(prefixes), *trials, self.plan.folder)
            if folder.exists()  # prefixes are removed when they are not used any more
        )

    # --------------------------------------------------------------------------------------------------------
    # Details

    def _bring_back(self) -> None:
        """Bring back from the archive what is lost of trials; of those that are over what the report needs."""
        if self.archive is None:
            return
        for trial in self.study.trials:
            folder, running = self.plan.trial_folder(trial.number), trial.state == TrialState.RUNNING
            if "folder" in trial.user_attrs and (running or Run.find(folder) is None):
                self.archive.fetch(folder, with_checkpoints=running)

    def _check_folders(self) -> None:
        """Refuse to go on without what was there."""
        for trial in self.study.trials:
            folder = self.plan.trial_folder(trial.number)
            begins_again = self.archive is not None and trial.state == TrialState.RUNNING
            if "folder" in trial.user_attrs and Run.find(folder) is None and not begins_again:
                raise ExperimentError(
                    f"trial {trial.number} of search {self.plan.name} was in {folder}, which is gone: restore it, name"
                    " the --storage that has it, or start anew with another --name"
                )

    def _tags(self, kind: str) -> dict[str, str]:
        return {"dgnet.kind": kind, "dgnet.search": self.plan.name, "dgnet.teacher": str(self.plan.teacher or "")}

    def _open(self) -> str:
        """MLflow's run of the search, new or opened again."""
        known = self.study.study.user_attrs.get("mlflow_run")
        if known is not None and not tracking.is_lost(self.connected, self.tracking_uri, known):
            tracking.reopen_run(self.connected, known)
            return known
        plan = self.plan
        params = {f"space.{name}": text for name, text in plan.space.texts().items()}
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

    def _tell_mlflow_of(self, number: int) -> None:
        """Tell MLflow how a trial ended that the study knows to be over."""
        trial = self.study.trial(number)
        reason, last = trial.user_attrs.get("reason", ""), max(trial.intermediate_values, default=None)
        run = Run.read(self.plan.trial_folder(number))
        if trial.state == TrialState.COMPLETE:
            self._tell_mlflow(run, "FINISHED", "", trial.values[0])
        elif trial.state == TrialState.PRUNED:
            objective = None if last is None else trial.intermediate_values[last]
            self._tell_mlflow(run, "KILLED", f"stopped early: {reason}", objective)
        else:
            self._tell_mlflow(run, "FAILED", reason)

    def _tell_mlflow(self, run: Run, status: tracking.Status, reason: str, objective: float | None = None) -> None:
        """Send what a trial's own process could not, and close its run. Should MLflow be away, `_catch_up` does it."""
        try:
            if not ship(run, lambda: True, patience=5):
                return
            link(self.connected, run)
            if objective is not None:
                moment = int(time.time() * 1000)
                self.connected.log_batch(run.mlflow_run, metrics=[Metric("objective", objective, moment, 0)])
            tracking.close_run(self.connected, run.mlflow_run, status, reason[:500])
        except tracking.AWAY as error:
            _log.warning("MLflow was not told how %s ended: %s", run.name, error)

    def _catch_up(self) -> None:
        """Tell MLflow what it missed, while it was away, of trials and prefixes that are over."""
        try:
            found = self.connected.search_runs([self._mlflow_experiment], "attributes.status = 'RUNNING'")
            unaware = {run.info.run_id for run in found}
            for trial in self.study.trials:
                if trial.state.is_finished() and trial.user_attrs.get("mlflow_run") in unaware:
                    self._tell_mlflow_of(trial.number)
            progress = [TrialProgress.read(self.plan.trial_folder(trial.number)) for trial in self.study.trials]
            for folder in sorted({Path(trial.prefix) for trial in progress if trial.prefix}):
                run = Run.find(folder)
                if run is not None and run.mlflow_run in unaware:
                    prefix.catch_up(run)
        except tracking.AWAY as error:
            _log.warning("MLflow was not told of all trials: %s; the same command does it later", error)


class Feed(Searcher):
    """Gives Tune the study's trials one after the other, and the study Tune's word that one is over."""

    def __init__(self, search: Search):
        super().__init__()
        self._search = search
        self._left = search.study.running
        self._numbers: dict[str, int] = {}
        self._failed = 0
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
            return {"folder": str(folder), "judge": search.judge(number)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Tune's trial is over: whatever there is to know is in its folder."""
        with self._lock:
            number = self._numbers.pop(trial_id, None)
            if number is None:
                return
            try:
                self._search.conclude(number)
                self._give_up_on(number)
            except Exception as failure:
                self.error = failure
                self._search.ask_to_stop()

    def _give_up_on(self, number: int) -> None:
        """Stop a search in which nothing but failing happens: more trials would not find another reason."""
        study = self._search.study
        self._failed += study.trial(number).state == TrialState.FAIL
        if self._failed == HOPELESS and not any(trial.state in DONE for trial in study.trials):
            raise TrainingError(
                f"the first {HOPELESS} trials failed, the last one because: {study.notes(number).get('reason', '')}\n"
                "The same command goes on, once that is mended"
            )

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved by itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its own state down, which nobody reads


def place_trials(plan: SearchPlan) -> Placement:
    """Connect to Ray and place a search's trials; raises ExperimentError if none ever fits, or cannot be tracked."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    machines.connect()
    machines.check_tracking(plan.tracking_uri)
    config = plan.config
    return place(
        machines.nodes(), workers=config.workers_per_trial, gpus=config.gpus_per_trial, concurrent=config.concurrent
    )
