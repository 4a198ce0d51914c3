"""The platform around the step: data sets, Ray, MLflow and Optuna."""

import os

# Otherwise each worker of a command under `uv run` gets a copy of the whole environment. Ray looks when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
