"""A finished run, which several files look at."""

import pytest
from mlflow import MlflowClient

from dgnet_platform.training.driver import train
from tests.helpers.runs import QUIET, tiny_experiment


@pytest.fixture(scope="session")
def finished(people_store, tmp_path_factory):
    """A run that went from nothing to the registry."""
    storage = tmp_path_factory.mktemp("finished")
    return train(tiny_experiment(people_store, storage), console=QUIET, register="tiny")


@pytest.fixture(scope="session")
def client(finished):
    """MLflow's, where that run is."""
    return MlflowClient(finished.run.tracking_uri)
