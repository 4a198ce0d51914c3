"""A run: its folder, and the record in it that says what it is. Whoever has the folder can resume the run."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import AnyExperiment, read_experiment
from dgnet_platform.storage.files import locked, naming, resolved, write_whole
from dgnet_platform.storage.serialize import to_dict

RECORD = "run.json"
STOP = "stop"
"""A file of this name in a run's folder asks it to save a checkpoint and stop."""
RESULTS = "results"
"""Folder of the final evaluation."""
STARTS = "starts.jsonl"
"""File in a run's folder with a line for each time that its workers started: from which iteration, on which hosts."""
TRAINING_LOCK = ".training.lock"
"""File in a run's folder, held by whoever trains it."""
FORMAT = 1
"""Version of the record."""


def checkpoint_at(folder: Path, iteration: int) -> Path:
    """Where a run's folder has the checkpoint of an iteration."""
    return folder / f"checkpoint_{iteration:08d}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is. Its folder also holds checkpoints, journal, pictures and results."""

    folder: Path
    """Absolute: workers' working directories are elsewhere."""
    experiment: AnyExperiment
    identity: dict[str, Any]
    """Values of the run's `Identity`."""
    teacher: str | None = None
    """Path of the teacher that labels generated images."""
    origin: str | None = None
    """Path of the checkpoint that the run was forked from."""
    tracking_uri: str
    mlflow_experiment: str
    """Id of MLflow's experiment."""
    mlflow_run: str
    """Id of MLflow's run."""
    evaluated_at_end: bool = True
    """Evaluate the finished run on query and gallery."""
    keeps_all: bool = False
    """Keep all checkpoints, here and in the archive, whatever `experiment.keep` says: others may start from them."""
    counted_from: int | None = None
    """Iteration from which MLflow counts its validation figures a second time, so that they can be compared with those
    of runs whose warm-up starts elsewhere; None: it does not."""
    until: int | None = None
    """Iteration at which it ends before its configuration's last one, without being evaluated there; None: it does
    not."""
    stop_file: str | None = None
    """Path of another file that asks it to stop, as STOP does."""
    code: str = ""
    """`training_digest` of the code that began it; none: an earlier version, which did not say."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint of its configuration's last iteration, there or not."""
        return checkpoint_at(self.folder, self.experiment.model.iterations)

    def save(self) -> None:
        """Write the record, whole or not at all; raises OSError."""
        values = {
            "format": FORMAT,
            "kind": self.identity["kind"],
            "experiment": to_dict(self.experiment),
            "identity": self.identity,
            "teacher": self.teacher,
            "origin": self.origin,
            "tracking_uri": self.tracking_uri,
            "mlflow_experiment": self.mlflow_experiment,
            "mlflow_run": self.mlflow_run,
            "evaluated_at_end": self.evaluated_at_end,
            "keeps_all": self.keeps_all,
            "counted_from": self.counted_from,
            "until": self.until,
            "stop_file": self.stop_file,
            "code": self.code,
        }
        write_whole(self.folder / RECORD, (json.dumps(values, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The run in a folder.

        Raises:
            FileNotFoundError: there is none, or this machine does not see it.
            ExperimentError: its record is damaged or of another version.
        """
        path = folder / RECORD
        try:
            values = json.loads(path.read_text())
            if values.pop("format") != FORMAT:
                raise ExperimentError(f"{path} is of another version: use the version that wrote it")
            experiment = read_experiment(values.pop("kind"), values.pop("experiment"))
            return cls(folder=folder, experiment=experiment, **_facts(values, experiment))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ExperimentError):
                raise
            raise ExperimentError(f"{path} is damaged or of another version ({error}): name another run") from None

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The run in a folder, or None where there is none."""
        return cls.read(folder) if (folder / RECORD).exists() else None

    def note_start(self, iteration: int, hosts: list[str]) -> None:
        """Keep that the run resumes after `iteration`, and on which host each rank is."""
        start = {"time": time.time_ns() // 1_000_000, "iteration": iteration, "hosts": hosts}
        path = self.folder / STARTS
        before = path.read_text() if path.exists() else ""
        with naming(path), path.open("a") as file:
            file.write("\n" * bool(before and not before.endswith("\n")))  # a crash left half a line
            file.write(json.dumps(start) + "\n")

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What `note_start` kept, the latest last."""
        found: list[dict[str, Any]] = []
        with suppress(FileNotFoundError):
            for line in (self.folder / STARTS).read_text().splitlines():
                with suppress(ValueError):  # half a line, which a crash left
                    found.append(json.loads(line))
        return found

    def ask_to_stop(self) -> None:
        """Have the run save a checkpoint and stop at its next iterations, wherever it runs."""
        (self.folder / STOP).touch()

    @property
    def stop_asked(self) -> bool:
        """Whether that was asked for."""
        files = [str(self.folder / STOP), *([self.stop_file] if self.stop_file else [])]
        return any(map(os.path.exists, files))  # once an iteration: Path.exists is twice as slow

    def forget_stop(self) -> None:
        """Forget that it was asked to stop: the run starts."""
        (self.folder / STOP).unlink(missing_ok=True)


def _facts(values: dict[str, Any], experiment: AnyExperiment) -> dict[str, Any]:
    """A record's values; those of the version before said what a run was for instead of what follows from it."""
    values.pop("judging", None)
    role = values.pop("role", None)
    if role is None:
        return values
    from dgnet_core.methods import method_of  # imports torch, for which --help must not wait

    clock = method_of(experiment.model).clock
    facts = {
        "evaluated_at_end": role == "run",
        "keeps_all": role == "prefix",
        "counted_from": clock(experiment.model).start if role == "trial" and clock is not None else None,
    }
    return values | facts


@contextmanager
def training_alone(folder: Path) -> Iterator[None]:
    """Keep other commands from training the run, or searching, in a folder; raises UserError if one does.

    A folder in which nothing was begun is removed.
    """
    try:
        with locked(folder / TRAINING_LOCK, f"run {folder.name} is being trained by another command: wait for it"):
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def absolute(location: str) -> str:
    """A folder or URI that holds wherever the worker's working directory is; nothing stays nothing."""
    return location if not location or "://" in location else str(resolved(location))


def folder_of(storage: str, name: str) -> Path:
    """Absolute folder of a run by its name."""
    return resolved(storage) / name


Ending = Literal["finished", "stopped", "stopped early", "diverged"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the loop ended."""

    ending: Ending
    iteration: int
    reason: str = ""
