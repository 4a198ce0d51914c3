"""Trials of a search from the driver's side: how one begins, how it ends, and what is recovered after a kill."""

from dataclasses import replace
from pathlib import Path

from optuna.trial import TrialState

from dgnet_core.dgnet.schedule import ramp_end
from dgnet_platform.compute.placement import Placement
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs import journal
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.experiment import DGNetExperiment, identity_of
from dgnet_platform.runs.provenance import training_digest
from dgnet_platform.runs.run import Run
from dgnet_platform.search import prefixes
from dgnet_platform.search.config import BETA, METRIC
from dgnet_platform.search.plan import SearchPlan
from dgnet_platform.search.stopping import RungJudge, rungs_of
from dgnet_platform.search.study import Study
from dgnet_platform.search.tracked import TrackedSearch
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.serialize import differences

VERDICTS = "verdicts.jsonl"
"""In a search's folder: what was decided at rungs."""


class Trials:
    """The trials of a search: the study says which, each one's folder says how far."""

    def __init__(self, plan: SearchPlan, placement: Placement, study: Study):
        """Bring back what was lost and is in the archive, and open MLflow's run of the search.

        Raises:
            ExperimentError: a trial's folder is missing.
            TrackingError: MLflow cannot be reached.
        """
        self.plan, self.placement, self.study = plan, placement, study
        self.archive = archive_of(plan.base)
        self._bring_back()
        check_folders(plan, study, archived=self.archive is not None)
        self.tracked = TrackedSearch(plan, study)

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
        tracked = self.tracked.open_trial(number, experiment, known)
        Run(
            folder=folder,
            experiment=experiment,
            identity=identity,
            teacher=str(plan.teacher) if plan.teacher else None,
            origin=run.origin if run else None,
            tracking_uri=tracked.uri,
            mlflow_experiment=tracked.experiment,
            mlflow_run=tracked.id,
            evaluated_at_end=False,
            counted_from=experiment.model.loss.teacher_warmup.start,
            stop_file=str(plan.stop_file),
            code=run.code if run else training_digest(),
        ).save()
        self.study.note(number, folder=str(folder), mlflow_run=tracked.id)
        return folder

    def judge(self, number: int) -> RungJudge | None:
        """What stops a trial early; None: nothing does."""
        rungs, rule = self.experiment(number).evaluate_also, self.plan.config.stopping
        book = self.plan.folder / VERDICTS
        return RungJudge(book=book, trial=number, rungs=rungs, rule=rule, metric=METRIC) if rungs else None

    def finish_trial(self, number: int) -> None:
        """Tell study and MLflow how a trial ended; one that was only stopped stays as it is.

        A trial without an ending died more often than it may.
        """
        folder = self.plan.trial_folder(number)
        run, progress = Run.read(folder), TrialProgress.read(folder)
        curve = {entry.iteration: entry.metrics for entry in journal.read(folder) if METRIC in entry.metrics}
        last = curve.get(progress.iteration, {})
        reason = progress.reason
        if progress.ending == "stopped":
            self.tracked.close_stopped(number)
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
        self.tracked.close_trial(number)
        if self.archive is not None:
            self.archive.try_to_push(folder)
        prefixes.collect(Path(self.plan.base.storage), int(self.plan.config.prefix_gib * 2**30))

    def recover(self) -> None:
        """Finish trials that ended after the last driver was killed, and complete those that were only half asked for.

        MLflow is told what it missed.
        """
        for number in self.study.running:
            self.study.resample(number)
            folder = self.plan.trial_folder(number)
            if Run.find(folder) is not None and TrialProgress.read(folder).over:
                self.finish_trial(number)
        self.tracked.catch_up()

    def bring_to_archive(self) -> bool:
        """Copy what is not in the archive yet of the search, its trials and their prefixes; returns whether all is."""
        if self.archive is None:
            return True
        trials = [self.plan.trial_folder(trial.number) for trial in self.study.trials]
        shared = {Path(found) for folder in trials if (found := TrialProgress.read(folder).prefix)}
        return all(
            self.archive.try_to_push(folder, prune=folder not in shared)
            for folder in (*sorted(shared), *trials, self.plan.folder)
            if folder.exists()  # prefixes are removed when they are not used any more
        )

    def _bring_back(self) -> None:
        """Bring back from the archive what is lost of trials; of those that are over what the report needs."""
        if self.archive is None:
            return
        for trial in self.study.trials:
            folder, running = self.plan.trial_folder(trial.number), trial.state == TrialState.RUNNING
            if "folder" in trial.user_attrs and (running or Run.find(folder) is None):
                self.archive.fetch(folder, with_checkpoints=running)


def check_folders(plan: SearchPlan, study: Study, *, archived: bool) -> None:
    """Refuse a search of which trials are missing; with an archive those under way begin again.

    Raises:
        ExperimentError: names the trial, its folder and what helps.
    """
    for trial in study.trials:
        folder = plan.trial_folder(trial.number)
        begins_again = archived and trial.state == TrialState.RUNNING
        if "folder" in trial.user_attrs and Run.find(folder) is None and not begins_again:
            raise ExperimentError(
                f"trial {trial.number} of search {plan.name} was in {folder}, which is gone: restore it, name the"
                " --storage that has it, or start anew with another --name"
            )
