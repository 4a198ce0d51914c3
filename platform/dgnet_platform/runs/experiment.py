"""An experiment: one tree of settings that is printed, stored with its run, and rebuilt from there.

What decides the result (the model, the data, the teacher) gives the run its name; where and how fast it is computed
does not. So the same command finds its run again, and resumes it.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.learning.config import MethodConfig
from dgnet_core.teacher.config import TeacherConfig
from dgnet_platform.storage.serialize import from_dict, to_dict

Model = TypeVar("Model", bound=MethodConfig, covariant=True)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str) -> None:
    """Raise ValueError for a name of a run or search, if there is one, that is no name of a folder."""
    if name and not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r}: letters, digits, dots, dashes and underscores only")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where data come from, and where runs go."""

    data: str = ""
    """The store to train on: folder or URI, made by jobs/prepare_data.py; none: people are drawn."""
    name: str = ""
    """Name of the run or search; none: made of the data set and a hash of all that decides the result."""
    storage: str = field(default_factory=lambda: os.environ.get("DGNET_STORAGE", "runs"))
    """Folder of all runs, which all machines must see; none: the environment's DGNET_STORAGE, or runs."""
    archive: str = ""
    """Where copies of what is in the storage folder go, such as s3://bucket/runs, and come from when it is lost."""
    tracking_uri: str = ""
    """MLflow's store or server, such as http://127.0.0.1:5000; none: the environment's MLFLOW_TRACKING_URI, or
    mlflow.db in the storage folder."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Which teacher is taken."""

    teacher: str = "auto"
    """A teacher's checkpoint, the authors' net_last.pth, or auto: trained on the same data once and found again
    later."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Places, Generic[Model]):
    """A training run: its method, data, machines, storage and tracking."""

    hold_out: bool = True
    """Keep the last 100 of 751 training identities out of training, in proportion, and validate on them; otherwise
    train on all of them, and follow the run on query and gallery."""
    workers: str = "0"
    """Ray Train workers, each with its share of the batch; 0: train in this process, without a cluster; A:B lets Ray
    continue with as few as A when nodes are lost, and with up to B when there are more."""
    gpus: bool = False
    """Give each worker a GPU."""
    threads: int = 0
    """CPU threads of a worker; 0: its share of this machine's."""
    max_failures: int = 3
    """How often a run starts again from its newest checkpoint after a worker or a node was lost."""
    log_every: int = 10
    """Iterations between fetching metrics from the device and averaging them over workers; each one is kept."""
    evaluate_every: int = 1_000
    """Iterations between retrieval figures and pictures."""
    evaluate_also: tuple[int, ...] = ()
    """Further iterations at which the run is evaluated, and saved too."""
    checkpoint_every: int = 1_000
    """Iterations between checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay; the best by validation mAP stays too."""
    model: Model
    """The method and its recipe."""

    def __post_init__(self) -> None:
        check_name(self.name)
        for name, least in (
            ("threads", 0), ("max_failures", 0), ("log_every", 1), ("evaluate_every", 1), ("checkpoint_every", 1),
            ("keep", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: must be {least} or more")
        if min(self.evaluate_also, default=1) < 1:
            raise ValueError(f"evaluate_also {self.evaluate_also}: iterations, 1 or more")
        fewest, most = self.fewest_workers, self.most_workers
        if self.gpus and not most:
            raise ValueError(
                "gpus: needs workers, at least 1; workers 0 trains in this process, on its GPU if there is one"
            )
        if fewest > most:
            raise ValueError(f"workers {self.workers!r}: the first number must not be larger than the second")

    @property
    def fewest_workers(self) -> int:
        """Workers that the run can do with."""
        return self._workers()[0]

    @property
    def most_workers(self) -> int:
        """Workers that the run takes when it can have them; 0: none, this process trains."""
        return self._workers()[1]

    def _workers(self) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)(?::(\d+))?", self.workers)
        if match is None or (match[2] and match[1] == "0"):
            raise ValueError(f"workers {self.workers!r}: a number such as 4, or fewest and most such as 1:4")
        return int(match[1]), int(match[2] or match[1])

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while the run trains."""
        return self.fewest_workers != self.most_workers


@dataclass(frozen=True, kw_only=True)
class TaughtExperiment(Taught, Experiment[Model]):
    """Training of a method that may need a teacher."""

    baseline: TeacherConfig
    """What `teacher auto` trains."""


AnyExperiment = Experiment[MethodConfig]
TeacherExperiment = Experiment[TeacherConfig]
DGNetExperiment = TaughtExperiment[DGNetConfig]


def read_experiment(kind: str, values: object) -> AnyExperiment:
    """The experiment that `to_dict` was given.

    Args:
        kind: the name of its method.
        values: a mapping of its fields; those with a default may be missing.

    Raises:
        KeyError: there is no such method.
        ConfigError: see `from_dict`.
    """
    from dgnet_core.methods import METHODS  # imports torch, for which --help must not wait

    method = METHODS[kind]
    return from_dict((TaughtExperiment if method.taught else Experiment)[method.config], values)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that decides the result of a run; equal identities are the same run."""

    kind: str
    """The name of the method."""
    dataset: str
    fingerprint: str
    """Of the store."""
    hold_out: bool
    model: MethodConfig
    keypoints: str | None = None
    """Digest of the store's key points; None: the method needs none."""
    teacher: str | None = None
    """Digest of the teacher's tensors; None: the run has no teacher."""
    origin: str | None = None
    """Digest and iteration of the checkpoint from which the run was forked; None: it starts from scratch."""

    def values(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold; names from before there were key points stay."""
        values = to_dict(self)
        return values if self.keypoints else {name: value for name, value in values.items() if name != "keypoints"}

    @property
    def name(self) -> str:
        """The name of a run without a given one."""
        digest = hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()
        return f"{self.dataset}-{self.kind}-{digest[:8]}"


def identity_of(
    experiment: AnyExperiment,
    *,
    dataset: str,
    fingerprint: str,
    teacher: str | None,
    origin: str | None,
    keypoints: str | None = None,
) -> Identity:
    """The identity of an experiment on a store; digests as in `Identity`."""
    from dgnet_core.methods import method_of  # imports torch, for which --help must not wait

    return Identity(
        kind=method_of(experiment.model).name,
        dataset=dataset,
        fingerprint=fingerprint,
        hold_out=experiment.hold_out,
        model=experiment.model,
        keypoints=keypoints,
        teacher=teacher,
        origin=origin,
    )
