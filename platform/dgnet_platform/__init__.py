"""The platform around the step: data sets, Ray, MLflow and Optuna."""

import os

# Otherwise each worker of a command under `uv run` gets a copy of the whole environment. Ray looks when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Otherwise threads spin at every barrier, even while the one they wait for is not scheduled: a step beside other work
# takes several times as long, and takes the time from others too. OpenMP looks when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
