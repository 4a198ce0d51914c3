"""What MLflow is told of generated pictures: in the run that trained their checkpoint, or in one of their own."""

from dataclasses import fields

from dgnet_platform.data.store import Store
from dgnet_platform.errors import TrackingError
from dgnet_platform.evaluation.config import MeasureConfig
from dgnet_platform.evaluation.measured import Measured
from dgnet_platform.runs.checkpoint import read_meta
from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import named_uri
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun, is_lost, open_run, uri_of

ARTIFACTS = "generated"
"""Folder of the results among the run's artifacts."""
_ELSEWHERE = "out", "workers", "gpus", "threads", "tracking_uri"
"""Settings that no figure depends on."""


def log_measured(config: MeasureConfig, measured: Measured) -> str:
    """Log figures and the folder of results: a checkpoint's at its iteration, in the run that trained it.

    Pictures of no run get one of their own, in the MLflow that --tracking-uri or MLFLOW_TRACKING_URI names.

    Returns:
        MLflow's URI; empty where the pictures are of no run and none is named: nothing is logged.

    Raises:
        TrackingError: MLflow does not answer, or does not know the run; the results are on the disk.
    """
    trained = Run.find(config.checkpoint.resolve().parent) if config.checkpoint else None
    uri = config.tracking_uri or (trained.tracking_uri if trained else named_uri())
    if not uri:
        return ""
    uri = uri_of(trained, uri) if trained else uri
    try:
        tracked = _known(uri, config, trained) if trained else _own(uri, config, measured)
        step = read_meta(config.checkpoint).iteration if trained and config.checkpoint else 0
        # Figures last: the same command finds a run of their own again as long as it has none.
        tracked.client.log_artifacts(tracked.id, str(config.out), ARTIFACTS)
        tracked.log(measured.figures(), step)
    except UNREACHABLE as error:
        raise TrackingError(
            f"the results are in {config.out}, but MLflow at {uri} was not told ({error}): start it, and run the same"
            " command again"
        ) from error
    if trained is None:
        tracked.close("FINISHED")
    return uri


def _known(uri: str, config: MeasureConfig, run: Run) -> TrackedRun:
    """The run that trained the checkpoint."""
    tracked = TrackedRun(uri, run.mlflow_experiment, run.mlflow_run)
    if is_lost(tracked.client, uri, tracked.id):
        raise TrackingError(
            f"the results are in {config.out}, but MLflow at {uri} has no run {tracked.id}: resume the training of"
            f" {run.name}, which makes it again, and run the same command again"
        )
    return tracked


def _own(uri: str, config: MeasureConfig, measured: Measured) -> TrackedRun:
    """A run of its own, in the experiment of the store."""
    params = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in _ELSEWHERE}
    networks = {f"dgnet.network.{name}": digest for name, digest in measured.networks.items()}
    return open_run(
        uri, Store.open(config.store), name=config.out.name, folder=config.out.resolve(), params=params,
        tags={"dgnet.kind": "generated", **networks},
    )  # fmt: skip
