"""A trial of a search in the process that Ray Tune gives it: its prefix, then the rest of its run.

All it needs to know is in its folder, so it may be killed at any moment and called again.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

from ray import tune

from dgnet_platform.runs import checkpoint, journal
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.experiment import DGNetExperiment
from dgnet_platform.runs.journal import JOURNAL
from dgnet_platform.runs.run import STOP, TRAINING_LOCK, Ending, Outcome, Run
from dgnet_platform.search.prefixes import PrefixError, ensure_prefix, link_prefix
from dgnet_platform.search.sharing import fork_of
from dgnet_platform.storage.files import locked, write_whole
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun
from dgnet_platform.training import trainer
from dgnet_platform.training.loop import Judge

PROGRESS = "trial.json"


@dataclass(kw_only=True)
class TrialProgress:
    """How far a trial is, beside its journal; each change is saved in its folder."""

    folder: Path
    """The trial's; not saved."""
    phase: Literal["starts", "waits", "prefix", "trains", "over"] = "starts"
    """waits: for a prefix that another trial trains; prefix: it trains one itself."""
    prefix: str = ""
    """Folder of its prefix, once there is one."""
    fork: int = 0
    """Iterations that the prefix had done for it."""
    trained: int = 0
    """Iterations that it trained for the prefix, up to `since`."""
    since: int | None = None
    """The iteration from which on it trains the prefix; None: it does not, or that is counted."""
    ending: Ending | None = None
    """How it ended; None: it did not yet."""
    iteration: int = 0
    """Iterations done when it ended."""
    reason: str = ""
    """Why it ended early, or what went wrong."""

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.ending is not None and self.ending != "stopped"

    def update(self, **changes: Any) -> None:
        """Change fields and save all of them, whole or not at all; raises OSError."""
        for name, value in changes.items():
            setattr(self, name, value)
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "folder"}
        write_whole(self.folder / PROGRESS, (json.dumps(values) + "\n").encode())

    def trained_until(self, iteration: int) -> int:
        """`trained`, with what was trained of the prefix since `since` and until an iteration."""
        return self.trained + (0 if self.since is None else max(0, iteration - self.since))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of the trial in a folder; before it starts there is none, and all is as at its beginning."""
        try:
            return cls(folder=folder, **json.loads((folder / PROGRESS).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return cls(folder=folder)


class Trial(tune.Trainable):
    """What Ray Tune runs: its only step is the whole trial, in the process's main thread.

    Two threads that both use PyTorch's CPU threads would halve each other's speed; Tune calls functions from another
    thread for each trial, but methods always from this one. The driver follows the journal instead of results.
    """

    def step(self) -> dict[str, Any]:
        """Train the trial in `config["folder"]`."""
        config = self.config
        run_trial(Path(config["folder"]), judge=config["judge"], sharing=config["sharing"], gpu_share=config["gpus"])
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: the run saves itself. Tune asks at a trial's end."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing, likewise."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:  # noqa: ARG002 - `config` is set already
        """The next trial may have this process: it has all imports done."""
        return True


def run_trial(folder: Path, *, judge: Judge | None, sharing: bool, gpu_share: float = 1.0) -> TrialProgress:
    """Train a trial until it is finished, told to stop, or diverges; one that is over is left alone.

    Args:
        folder: the run's; its record says everything.
        judge: asked at the trial's rungs whether it has to stop.
        sharing: take what comes before the warm-up from a prefix.
        gpu_share: GPUs of each of its workers.

    Raises:
        Exception: a worker failed; the reason is in the trial's progress.
    """
    with locked(folder / TRAINING_LOCK):  # the process of a driver that was just killed may need a moment to die
        progress = TrialProgress.read(folder)
        if not progress.over:
            _run_trial(progress, judge, sharing, gpu_share)
        return progress


def _run_trial(progress: TrialProgress, judge: Judge | None, sharing: bool, gpu_share: float) -> None:
    progress.update(phase="starts", ending=None, reason="")
    folder = progress.folder
    run = Run.read(folder)
    run.forget_stop()

    def fit(run: Run, judge: Judge | None = None) -> Outcome:
        result = trainer.build_trainer(run, judge=judge, gpu_share=gpu_share or 1.0).fit()
        return Outcome(**result.return_value)  # pyright: ignore[reportCallIssue]

    try:
        if sharing:
            _take_prefix(run, progress, fit)
        progress.update(phase="trains")
        outcome = fit(run, judge)
    except PrefixError as error:
        outcome = error.outcome
        if error.folder is not None:
            progress.update(trained=progress.trained_until(outcome.iteration), since=None)
        if outcome.ending == "diverged" and error.folder is not None:  # the trial would have had the same curve
            journal.copy(error.folder / JOURNAL, folder / JOURNAL, outcome.iteration)
    except Exception as error:
        progress.update(reason=trainer.cause(error))
        raise
    over = {} if outcome.ending == "stopped" else {"phase": "over"}
    progress.update(ending=outcome.ending, iteration=outcome.iteration, reason=outcome.reason, **over)
    archive = archive_of(run.experiment)
    if archive is not None:
        archive.try_to_push(folder)


def _take_prefix(run: Run, progress: TrialProgress, fit: Callable[[Run], Outcome]) -> None:
    """Give a trial that has done nothing yet the checkpoint and journal of its prefix."""
    experiment = cast(DGNetExperiment, run.experiment)  # a search's are
    fork = fork_of(experiment.model)
    if not 0 < fork < experiment.model.iterations or checkpoint.newest(run.folder) is not None:
        return

    def say(what: Literal["waits", "trains"], prefix: Path, start: int) -> None:
        if what == "waits":
            progress.update(phase=what)
        else:  # also again, after its process was killed
            progress.update(phase="prefix", prefix=str(prefix), trained=progress.trained_until(start), since=start)

    found = ensure_prefix(
        experiment,
        fork,
        teacher=Path(run.teacher) if run.teacher else None,
        tracking_uri=run.tracking_uri,
        stop_file=Path(run.stop_file or run.folder / STOP),
        fit=fit,
        say=say,
    )
    with found as prefix:
        progress.update(prefix=str(prefix.run.folder), fork=fork, trained=progress.trained_until(fork), since=None)
        replace(run, origin=str(prefix.checkpoint)).save()
        link_prefix(prefix.checkpoint, run.folder)
    with suppress(*UNREACHABLE):  # else the search does it when the trial is over
        tag_prefix(TrackedRun.of(run), progress)


def tag_prefix(tracked: TrackedRun, progress: TrialProgress) -> None:
    """Tell MLflow from which prefix a trial comes, if it has one; raises one of tracking.UNREACHABLE."""
    if progress.fork:  # a prefix that diverged gave it nothing
        tags = {"dgnet.fork": str(progress.fork), "dgnet.origin": progress.prefix}
        if (prefix := Run.find(Path(progress.prefix))) is not None:  # else it was removed since
            tags["dgnet.prefix_run"] = prefix.mlflow_run
        tracked.tag(tags)
