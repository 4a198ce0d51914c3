"""What MLflow is told of generated pictures, in the run that trained their checkpoint."""

from dgnet_platform.errors import TrackingError
from dgnet_platform.evaluation.config import MeasureConfig
from dgnet_platform.runs.checkpoint import read_meta
from dgnet_platform.runs.run import Run
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun, is_lost, uri_of

ARTIFACTS = "generated"
"""Folder of the results among the run's artifacts."""


def log_measured(run: Run, config: MeasureConfig, figures: dict[str, float]) -> str:
    """Log figures at the checkpoint's iteration, and the folder of results; returns the URI of MLflow.

    Raises:
        TrackingError: MLflow does not answer, or does not know the run; the results are on the disk.
    """
    assert config.checkpoint is not None
    tracked = TrackedRun(uri_of(run, config.tracking_uri or run.tracking_uri), run.mlflow_experiment, run.mlflow_run)
    if is_lost(tracked.client, tracked.uri, tracked.id):
        raise TrackingError(
            f"the results are in {config.out}, but MLflow at {tracked.uri} has no run {tracked.id}: resume the training"
            f" of {run.name}, which makes it again, and run the same command again"
        )
    try:
        tracked.log(figures, step=read_meta(config.checkpoint).iteration)
        tracked.client.log_artifacts(tracked.id, str(config.out), ARTIFACTS)
    except UNREACHABLE as error:
        raise TrackingError(
            f"the results are in {config.out}, but MLflow at {tracked.uri} was not told ({error}): start it, and run"
            " the same command again"
        ) from error
    return tracked.uri
