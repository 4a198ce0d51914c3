"""What MLflow is told of generated pictures, in the run that trained their checkpoint."""

import time

from mlflow.entities import Metric

from dgnet_platform.errors import TrackingError
from dgnet_platform.evaluation.config import MeasureConfig
from dgnet_platform.runs.checkpoint import read_meta
from dgnet_platform.runs.run import Run
from dgnet_platform.tracking.client import AWAY, check_run, client, uri_of

ARTIFACTS = "generated"
"""Folder of the results among the run's artifacts."""


def log_measured(run: Run, config: MeasureConfig, figures: dict[str, float]) -> str:
    """Log figures at the checkpoint's iteration, and the folder of results; returns the URI of MLflow.

    Raises:
        TrackingError: MLflow does not answer, or does not know the run; the results are on the disk.
    """
    assert config.checkpoint is not None
    uri = uri_of(run.mlflow_run, config.tracking_uri or run.tracking_uri, run.tracking_uri)
    iteration, moment = read_meta(config.checkpoint).iteration, int(time.time() * 1000)
    try:
        connected = client(uri)
        check_run(connected, run.mlflow_run)
        metrics = [Metric(name, value, moment, iteration) for name, value in figures.items()]
        connected.log_batch(run.mlflow_run, metrics=metrics)
        connected.log_artifacts(run.mlflow_run, str(config.out), ARTIFACTS)
    except AWAY as error:
        raise TrackingError(
            f"the results are in {config.out}, but MLflow at {uri} was not told ({error}): start it, and run the same"
            " command again"
        ) from error
    return uri
