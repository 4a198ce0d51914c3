"""MLflow, behind one face: a tracked run is one handle, from its opening to its end.

What happens while a run trains goes through the journal; `shipping` takes it from there.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.db.utils import _initialize_tables
from mlflow.tracking.context.registry import resolve_tags
from PIL import Image
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import SQLAlchemyError

from dgnet_platform.data.store import Store
from dgnet_platform.errors import TrackingError
from dgnet_platform.runs.provenance import code_version
from dgnet_platform.runs.run import Ending, Run
from dgnet_platform.runs.tracking_uri import SQLITE, VARIABLE, database_of, is_gone, sqlite_uri
from dgnet_platform.storage.files import appearing, lock
from dgnet_platform.tracking.remedies import first_line, remedy_for

Answer = TypeVar("Answer")
Status = Literal["FINISHED", "FAILED", "KILLED"]
_STATUS: dict[Ending, Status] = {"finished": "FINISHED", "stopped": "KILLED", "stopped early": "KILLED"}

UNREACHABLE = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)
"""What MLflow raises when its store or server does not answer."""
PATIENCE, RETRY = 120.0, 3.0
"""Seconds that MLflow may be away when a run has to be opened, and between tries."""
FOLDER_TAG, NAME_TAG, NOTE_TAG = "dgnet.folder", "dgnet.name", "mlflow.note.content"

_log = logging.getLogger(__name__)
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it shows a traceback of what it raises


class TrackedRun:
    """MLflow's run of a run's or a search's folder.

    As a context it is closed when something goes wrong within: KILLED by Ctrl-C, else FAILED.
    """

    def __init__(self, uri: str, experiment: str, run_id: str):
        """A handle of a run that exists; MLflow is not asked."""
        self.uri, self.experiment, self.id = uri, experiment, run_id
        self.client = client(uri)
        self._closed = False

    @classmethod
    def of(cls, run: Run) -> Self:
        """The handle of a run by its record."""
        return cls(run.tracking_uri, run.mlflow_experiment, run.mlflow_run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self._closed:
            self.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", str(error))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags; raises one of UNREACHABLE."""
        self.client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log(self, figures: Mapping[str, float], step: int = 0) -> None:
        """Log figures of this moment; raises one of UNREACHABLE."""
        moment = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, moment, step) for name, value in figures.items()])

    def describe(self, text: str) -> None:
        """Show Markdown above the run's figures; raises one of UNREACHABLE."""
        self.client.set_tag(self.id, NOTE_TAG, text)

    def log_file(self, path: Path) -> None:
        """Keep a copy of a file among the run's artifacts; raises one of UNREACHABLE."""
        self.client.log_artifact(self.id, str(path))

    def log_picture(self, picture: Image.Image, file: str) -> None:
        """Keep a picture under a path among the run's artifacts; raises one of UNREACHABLE."""
        self.client.log_image(self.id, picture, artifact_file=file)

    def running(self) -> set[str]:
        """Ids of the runs of the same experiment that MLflow shows as running; raises one of UNREACHABLE."""
        found = self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'")
        return {run.info.run_id for run in found}

    def close(self, status: Status, reason: str = "") -> None:
        """Mark the run as ended, and say why; one that has ended so already keeps its time.

        Never raises because MLflow is away: the run then stays open there, and whoever closes it again succeeds.
        """
        self._closed = True
        try:
            if self.client.get_run(self.id).info.status != status:
                if reason:
                    self.client.set_tag(self.id, "dgnet.reason", reason[:500])
                self.client.set_terminated(self.id, status)
        except UNREACHABLE as error:
            _log.warning("MLflow still shows run %s as running (%s)", self.id, first_line(error))


def status_of(ending: Ending | None) -> Status:
    """MLflow's word for how a run ended; None: its process died."""
    return "FAILED" if ending is None else _STATUS.get(ending, "FAILED")


def open_run(
    uri: str,
    store: Store,
    *,
    name: str,
    folder: Path,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    known: str | None = None,
    resume: bool = True,
    stop_asked: Callable[[], bool] | None = None,
) -> TrackedRun:
    """Find or make the MLflow run of a folder, in the experiment of its store.

    One that was made for the folder but never written to is taken. One that was lost with its database file is
    replaced: the journal fills the new one.

    Args:
        uri: MLflow's store or server.
        store: what is trained on; the run is told of it.
        name: of a new run.
        folder: the run's.
        params: of a new run.
        tags: of a new run, beside those that tell where data and code come from.
        known: id of the run that the folder has; None: none yet.
        resume: mark a run that exists as running again.
        stop_asked: MLflow may be away for PATIENCE seconds, unless this says that a stop was asked for;
            None: it has to answer at once.

    Raises:
        TrackingError: MLflow cannot be reached, the experiment or the run was deleted, or a server does not know it.
    """

    def attempt() -> TrackedRun:
        connected, experiment = open_experiment(uri, f"dgnet-{store.info.dataset}")
        run_id = known
        with _usable(uri):
            if run_id is None or is_lost(connected, uri, run_id):
                key = f"{socket.gethostname()}:{folder.as_uri()}"  # no quote of a filter's text is left in it
                run_id = _unwritten(connected, experiment, key, name)
                _describe(connected, run_id, params, resolve_tags() | _provenance(store) | dict(tags), store)
            elif resume:
                connected.update_run(run_id, status="RUNNING")
        return TrackedRun(uri, experiment, run_id)

    return attempt() if stop_asked is None else _patiently(attempt, uri, stop_asked)


def open_experiment(uri: str, name: str) -> tuple[MlflowClient, str]:
    """A client, and the id of an experiment, which is made if need be.

    Raises:
        TrackingError: the store or server cannot be reached, or the experiment was deleted.
    """
    with _usable(uri), _alone(uri):
        connected = client(uri)
        found = connected.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow's experiment {name} at {uri} was deleted: restore it with `mlflow experiments restore"
                f" --experiment-id {found.experiment_id}`, or name another --tracking-uri"
            )
        return connected, found.experiment_id if found else connected.create_experiment(name, _artifacts(uri))


@contextmanager
def _usable(uri: str) -> Iterator[None]:
    """Turns what MLflow raises into a TrackingError that says what to do."""
    try:
        yield
    except (*UNREACHABLE, ImportError) as error:
        raise TrackingError(
            f"MLflow at {uri} cannot be used ({first_line(error)}): {remedy_for(uri, error)}"
        ) from error


def client(uri: str) -> MlflowClient:
    """A client that gives up after seconds, not after the four minutes of MLflow's defaults."""
    for name, value in {"MAX_RETRIES": "1", "BACKOFF_FACTOR": "1", "TIMEOUT": "10"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    named = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(uri)  # it also sets the user's variable, which other runs of this process go by
    if named is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = named
    return MlflowClient(uri)


def is_lost(connected: MlflowClient, uri: str, run_id: str) -> bool:
    """Whether a run was lost with the database file that it was in: its journal can fill another one.

    Raises:
        TrackingError: a server does not know it, it was deleted, or MLflow does not answer.
    """
    try:
        stage = connected.get_run(run_id).info.lifecycle_stage
    except UNREACHABLE as error:
        if uri.startswith(SQLITE) and _is_unknown(error):
            return True
        raise TrackingError(
            f"MLflow run {run_id} cannot be resumed ({first_line(error)}): name the --tracking-uri it is tracked by,"
            " or another --name for a new run"
        ) from error
    if stage != "active":
        raise TrackingError(
            f"MLflow run {run_id} was deleted: restore it with `mlflow runs restore --run-id {run_id}`, or pass another"
            " --name for a new run"
        )
    return False


def uri_of(run: Run, uri: str) -> str:
    """The URI that tracks a run: the one before, but `uri` if it knows the run too, because its server has moved there.

    Where the database file of before is gone, it is `uri`.
    """
    if uri == run.tracking_uri or is_gone(run.tracking_uri):
        return uri
    try:
        client(uri).get_run(run.mlflow_run)
    except UNREACHABLE:
        return run.tracking_uri
    return uri


def _patiently(call: Callable[[], Answer], uri: str, stop_asked: Callable[[], bool]) -> Answer:
    """The answer of MLflow, also when it is away for a while.

    Raises:
        TrackingError: it was away for PATIENCE, or until a stop was asked for.
        Exception: `call` raised it for another reason.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except (*UNREACHABLE, TrackingError) as error:
            cause = error.__cause__ if isinstance(error, TrackingError) else error
            if not isinstance(cause, UNREACHABLE) or _is_unknown(cause):
                raise  # asking again would not help
            if time.monotonic() > give_up or stop_asked():
                raise TrackingError(
                    f"MLflow at {uri} was away for too long ({first_line(error)}): start it, the same command resumes"
                ) from error
            time.sleep(RETRY)


def _unwritten(connected: MlflowClient, experiment: str, key: str, name: str) -> str:
    """The id of a run for a folder, new or made but never written to: whoever made it was killed."""
    found = connected.search_runs([experiment], f"tags.`{FOLDER_TAG}` = '{key}'", ViewType.ACTIVE_ONLY, 1)
    if found and not found[0].data.metrics:
        return found[0].info.run_id
    return connected.create_run(experiment, run_name=name, tags={FOLDER_TAG: key, NAME_TAG: name}).info.run_id


def _describe(
    connected: MlflowClient, run_id: str, params: Mapping[str, Any], tags: Mapping[str, str], store: Store
) -> None:
    """Tell MLflow what a run is; again changes nothing."""
    values = [Param(name, str(value)) for name, value in params.items()]
    for first in range(0, len(values), 100):  # MLflow takes no more at once
        connected.log_batch(run_id, params=values[first : first + 100])
    connected.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    data = Dataset(
        name=store.info.dataset,
        digest=store.info.fingerprint[:36],
        source_type="dgnet_store",
        source=json.dumps({"uri": store.location}),
    )
    connected.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def _provenance(store: Store) -> dict[str, str]:
    """Tags that tell where a run's data and code come from."""
    code = code_version()
    return {
        "dgnet.dataset": store.info.dataset,
        "dgnet.data_fingerprint": store.info.fingerprint,
        "dgnet.drawn_people": str(bool(store.info.origin)).lower(),
        "dgnet.code": code,
        "dgnet.dirty": str(code.endswith("-dirty")).lower(),
        "mlflow.source.git.commit": "" if "+sources." in code else code.partition("+")[2].removesuffix("-dirty"),
    }


def _artifacts(uri: str) -> str | None:
    """Where an experiment's artifacts go: beside a database; a server decides for itself."""
    return (database_of(uri).parent / "mlflow-artifacts").as_uri() if uri.startswith(SQLITE) else None


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Only one process at a time within this context; a database file that is missing is made first.

    It appears whole: MLflow makes its tables in many steps, and opens no database that was left between two.
    """
    if not uri.startswith(SQLITE):
        yield
        return
    database = database_of(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{database}.lock").open("w", encoding="utf-8") as file:
        lock(file)
        if not database.exists():
            with appearing(database) as partial:
                _initialize_tables(create_engine(sqlite_uri(partial), poolclass=NullPool))
        yield


def _is_unknown(error: BaseException | None) -> bool:
    """Whether MLflow answered that it has no such thing."""
    return isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
