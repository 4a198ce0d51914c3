"""MLflow, behind one face: connections, runs, and what is told of a run before and after it trains.

What happens meanwhile goes through the journal; `shipping` takes it from there.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.data.filesystem_dataset_source import FileSystemDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy.exc import SQLAlchemyError

from dgnet_platform.data.store import Store
from dgnet_platform.errors import TrackingError
from dgnet_platform.runs.provenance import code_version
from dgnet_platform.runs.tracking_uri import SQLITE, database_of
from dgnet_platform.storage.files import lock

Answer = TypeVar("Answer")
Status = Literal["FINISHED", "FAILED", "KILLED"]

AWAY = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)
"""What MLflow raises when its store or server does not answer."""
PATIENCE, RETRY = 120.0, 3.0
"""Seconds that MLflow may be away when a run has to be opened, and between tries."""
FOLDER_TAG, NAME_TAG = "dgnet.folder", "dgnet.name"


def client(uri: str) -> MlflowClient:
    """A client that gives up after seconds, not after the four minutes of MLflow's defaults."""
    for name, value in {"MAX_RETRIES": "1", "BACKOFF_FACTOR": "1", "TIMEOUT": "10"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client, and the id of an experiment, which is made if need be.

    Raises:
        TrackingError: the store or server cannot be reached.
    """
    try:
        with _alone(uri):
            connected = client(uri)
            found = connected.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage != "active":
                raise TrackingError(
                    f"MLflow's experiment {experiment} at {uri} was deleted: restore it with `mlflow experiments"
                    f" restore --experiment-id {found.experiment_id}`, or name another --tracking-uri"
                )
            return connected, found.experiment_id if found else connected.create_experiment(experiment, _place(uri))
    except AWAY as error:
        remedy = "is the server running?" if uri.startswith("http") else "can it be written?"
        if "error code 401" in str(error):
            remedy = (
                "it wants another user or password than those of MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or"
                " ~/.mlflow/credentials"
            )
        raise TrackingError(f"MLflow at {uri} cannot be reached ({_first_line(error)}): {remedy}") from error


def patiently(call: Callable[[], Answer], uri: str, *, stop_asked: Callable[[], bool]) -> Answer:
    """The answer of MLflow, also when it is away for a while.

    Args:
        call: asks MLflow.
        uri: of MLflow.
        stop_asked: whether somebody asked to stop, so that waiting is no use.

    Raises:
        TrackingError: it was away for PATIENCE, or until somebody asked to stop.
        Exception: `call` raised it for another reason.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except (*AWAY, TrackingError) as error:
            if not _is_away(error):
                raise
            if time.monotonic() > give_up or stop_asked():
                raise TrackingError(
                    f"MLflow at {uri} was away for too long ({_first_line(error)}): start it, the same command goes on"
                ) from error
            time.sleep(RETRY)


def open_run(
    connected: MlflowClient,
    experiment_id: str,
    *,
    name: str,
    folder: Path,
    params: Mapping[str, Any],
    tags: dict[str, str],
    store: Store,
) -> str:
    """Make the MLflow run of a run folder; returns its id. One that was made for it but never written to is taken.

    Its tags are those given, and where data and code come from.
    """
    key = f"{socket.gethostname()}:{folder}"
    found = connected.search_runs([experiment_id], f"tags.`{FOLDER_TAG}` = '{key}'", ViewType.ACTIVE_ONLY, 1)
    if found and not found[0].data.metrics:
        run_id = found[0].info.run_id  # whoever made it may not have told it all
    else:
        run_id = connected.create_run(experiment_id, run_name=name, tags={FOLDER_TAG: key, NAME_TAG: name}).info.run_id
    values = [Param(key, str(value)) for key, value in params.items()]
    labels = [RunTag(key, value) for key, value in (_provenance(store) | tags).items()]
    for first in range(0, len(values), 100):
        connected.log_batch(run_id, params=values[first : first + 100])
    connected.log_batch(run_id, tags=labels)
    data = MetaDataset(_StoreSource(store.location), name=store.info.dataset, digest=store.info.fingerprint[:36])
    context = InputTag("mlflow.data.context", "training")
    connected.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity(), [context])])
    return run_id


def check_run(connected: MlflowClient, run_id: str) -> None:
    """Check that MLflow still has a run.

    Raises:
        TrackingError: it does not know it any more, has it among the deleted ones, or does not answer.
    """
    try:
        stage = connected.get_run(run_id).info.lifecycle_stage
    except AWAY as error:
        raise TrackingError(
            f"MLflow run {run_id} cannot be gone on with ({_first_line(error)}): name the --tracking-uri it is tracked"
            " by, or another --name for a new run"
        ) from error
    if stage != "active":
        raise TrackingError(
            f"MLflow run {run_id} was deleted: restore it with `mlflow runs restore --run-id {run_id}`, or pass another"
            " --name for a new run"
        )


def is_lost(connected: MlflowClient, uri: str, run_id: str) -> bool:
    """Whether a run was lost with the database file that it was in: its journal can fill another one.

    Raises:
        TrackingError: a server does not know it, it was deleted, or MLflow does not answer.
    """
    try:
        check_run(connected, run_id)
    except TrackingError as error:
        if uri.startswith(SQLITE) and _is_unknown(error.__cause__):
            return True
        raise
    return False


def _is_unknown(error: BaseException | None) -> bool:
    """Whether MLflow answered that it has no such thing."""
    return isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)


def _is_away(error: BaseException) -> bool:
    """Whether an error may pass when MLflow is asked again."""
    cause = error.__cause__ if isinstance(error, TrackingError) else error
    return isinstance(cause, AWAY) and not _is_unknown(cause)


def uri_of(run_id: str, uri: str, before: str) -> str:
    """The URI that tracks a run: `uri` if it knows the run, because its server has moved there, else the one before."""
    if uri == before:
        return uri
    try:
        client(uri).get_run(run_id)
    except AWAY:
        return before
    return uri


def reopen_run(connected: MlflowClient, run_id: str) -> None:
    """Mark a run as running again; errors as `check_run`."""
    check_run(connected, run_id)
    connected.update_run(run_id, status="RUNNING")


def close_run(connected: MlflowClient, run_id: str, status: Status, reason: str = "") -> None:
    """Mark a run as ended, and say why; one that has ended so already keeps its time."""
    if connected.get_run(run_id).info.status == status:
        return
    if reason:
        connected.set_tag(run_id, "dgnet.reason", reason)
    connected.set_terminated(run_id, status)


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


class _StoreSource(FileSystemDatasetSource):
    """Where a store is, as MLflow wants to be told."""

    def __init__(self, location: str):
        self._location = location

    @property
    def uri(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._location

    @staticmethod
    def _get_source_type() -> str:
        return "dgnet_store"

    def load(self, dst_path: str | None = None) -> str:  # noqa: ARG002
        """The store's location; stores are not copied."""
        return self._location

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:  # noqa: ARG004
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "FileSystemDatasetSource":
        raise TypeError(f"{raw_source!r} is no store")

    def to_dict(self) -> dict[Any, Any]:
        """The location, as JSON holds it."""
        return {"uri": self._location}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> "FileSystemDatasetSource":
        """What `to_dict` was given."""
        return cls(source_dict["uri"])


def _place(uri: str) -> str | None:
    """Where an experiment's artifacts go: beside a database; a server decides for itself."""
    return (database_of(uri).parent / "mlflow-artifacts").as_uri() if uri.startswith(SQLITE) else None


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Only one process at a time within this context: two that make the same database at once break it."""
    if not uri.startswith(SQLITE):
        yield
        return
    database_of(uri).parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{database_of(uri)}.lock").open("w") as file:
        lock(file)
        yield


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
