"""The platform around the step: data sets, Ray, MLflow and Optuna."""

import os

# Otherwise each worker of a command under `uv run` gets a copy of the whole environment. Ray looks when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Otherwise threads spin long at every barrier, even while the one they wait for is not scheduled: a step beside other
# work takes several times as long. So short a spin costs nothing without. OpenMP looks when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
