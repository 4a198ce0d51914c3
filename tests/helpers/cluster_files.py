"""The files and scripts of clusters. The scripts are run by path, and import each other likewise."""

import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.runs import ROOT

FOLDER = ROOT / "platform" / "cluster"
sys.path.insert(0, str(FOLDER))
import mlflow_server  # noqa: E402
import prepare  # noqa: E402
import render  # noqa: E402

__all__ = ["FOLDER", "load", "mlflow_server", "prepare", "render"]


def load(path: Path) -> dict[str, Any]:
    """A cluster's file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))
