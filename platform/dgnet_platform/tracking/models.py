"""What MLflow is given of a finished run: its results, and its network as a model that others can load and serve."""

import logging
import math
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

import dgnet_core
import dgnet_platform
from dgnet_core.methods import method_of
from dgnet_platform.evaluation.results import read
from dgnet_platform.evaluation.swaps import GENERATED
from dgnet_platform.runs import journal
from dgnet_platform.runs.checkpoint import load_networks
from dgnet_platform.runs.run import RESULTS, Run
from dgnet_platform.tracking import serving
from dgnet_platform.tracking.client import TrackedRun

MODEL_TAG = "dgnet.model"
"""Tag of a run with the id of its published model."""
_RETRIEVAL = (
    "rank1", "rank1_low", "rank1_high", "rank5", "rank10", "mAP", "mAP_low", "mAP_high", "mINP",
)  # fmt: skip
"""Figures of retrieval that MLflow gets, where a row has them."""
_NEEDED = ("torch", "numpy", "pandas", "pillow", "simplejpeg", "mlflow")


def publish_model(tracked: TrackedRun, run: Run, checkpoint: Path, register: str | None) -> str:
    """Log results and model of a finished run; what is there already is left alone.

    Args:
        tracked: the run in MLflow.
        run: finished, and evaluated where its store has a query and a gallery.
        checkpoint: its last one.
        register: name in the model registry; None: not registered.

    Returns:
        The model's URI.
    """
    connected = tracked.client
    tags = connected.get_run(run.mlflow_run).data.tags
    if MODEL_TAG in tags:
        uri = f"models:/{tags[MODEL_TAG]}"
    else:
        if run.evaluated_at_end:
            log_results(tracked, run)
        model_id = _log_model(run, checkpoint)
        connected.set_tag(run.mlflow_run, MODEL_TAG, model_id)
        uri = f"models:/{model_id}"
    if register is not None:
        _register(connected, register, uri, run.mlflow_run)
    return uri


def log_results(tracked: TrackedRun, run: Run) -> None:
    """Log the figures and files of a run's final evaluation; again changes nothing. Raises one of UNREACHABLE."""
    results, last = run.folder / RESULTS, run.experiment.model.iterations
    known = next((entry.metrics for entry in journal.read(run.folder) if entry.iteration == last), {})
    figures = [figure for figure in _figures(results, last) if figure.key not in known]
    tracked.client.log_batch(run.mlflow_run, metrics=figures)
    tracked.client.log_artifacts(run.mlflow_run, str(results), RESULTS)


def _figures(results: Path, iteration: int) -> list[Metric]:
    """Final figures as metrics, by the names of the curves that they end, if there are such.

    Their time is that of the results, so that sending them twice changes nothing.
    """
    evaluation, moment = read(results), int((results / "results.json").stat().st_mtime * 1000)
    found: dict[str, float] = {}
    for row in evaluation.retrieval.to_dict("records"):
        feature = str(row["feature"]).removeprefix("f_")
        suffix = "" if row["query"] == "single" else "_multi_query"
        figures = [name for name in _RETRIEVAL if not math.isnan(row.get(name, math.nan))]
        found |= {f"test/{feature}{suffix}/{name}": float(row[name]) for name in figures}
    for row in evaluation.differences.to_dict("records"):
        names = [str(row[name]).removeprefix("f_") for name in ("feature", "minus")]
        suffix = "" if row["query"] == "single" else "_multi_query"
        figures = [name for name in _RETRIEVAL if not math.isnan(row.get(name, math.nan))]
        found |= {f"test/{names[0]}_minus_{names[1]}{suffix}/{name}": float(row[name]) for name in figures}
    for row in evaluation.swaps.to_dict("records"):
        if row["picture"] == GENERATED:
            who = "unseen" if row["identities"] == "unseen" else "seen"
            about = ("store", "identities", "picture", "pairs")
            figures = {str(name): float(value) for name, value in row.items() if name not in about}
            found |= {f"test/swap_{who}/{name}": value for name, value in figures.items() if math.isfinite(value)}
    return [Metric(name, value, moment, iteration) for name, value in found.items()]


def _log_model(run: Run, checkpoint: Path) -> str:
    """Log the networks of a checkpoint as a pyfunc model; returns its id."""
    state, meta = load_networks(checkpoint)
    size = meta.config.network
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # environments without pip are fine
    with tempfile.TemporaryDirectory() as temporary, mlflow.start_run(run_id=run.mlflow_run), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*type hint.*")
        info = mlflow.pyfunc.log_model(
            name="pictures" if method_of(meta.config).describe is None else "descriptors",
            step=meta.iteration,
            metadata={
                "dataset": meta.dataset,
                "iteration": meta.iteration,
                "code": meta.code,
                "height": size.height,
                "width": size.width,
            },
            **_served(temporary, *serving.export(state, meta.config, Path(temporary))),
        )
    assert info.model_id is not None
    return info.model_id


def save_served(program: torch.export.ExportedProgram, about: Mapping[str, str], folder: Path) -> None:
    """Write a program with its metadata as a new folder that `mlflow models serve -m` takes: pictures' bytes in."""
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*type hint.*")
        told = serving.export_program(program, int(about["height"]), int(about["width"]), Path(temporary))
        mlflow.pyfunc.save_model(path=folder, metadata=dict(about), **_served(temporary, *told))


def _served(files: str, signature: ModelSignature, example: pd.DataFrame) -> dict[str, Any]:
    """What MLflow is told of a model whose files are in a folder."""
    return {
        "python_model": str(Path(serving.__file__)),
        "artifacts": {"network": files},
        "code_paths": [str(Path(package.__file__ or "").parent) for package in (dgnet_core, dgnet_platform)],
        "signature": signature,
        "input_example": example,
        "pip_requirements": [f"{package}=={version(package)}" for package in _NEEDED],
    }


def _register(connected: MlflowClient, name: str, uri: str, run_id: str) -> None:
    """Make a model the newest version of a registered one, unless it is a version already."""
    try:
        connected.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    versions = connected.search_model_versions(f"run_id = '{run_id}'")  # a name may hold what ends a filter's text
    if (name, uri) not in {(version.name, version.source) for version in versions}:
        connected.create_model_version(name, uri, run_id, model_id=uri.removeprefix("models:/"))
