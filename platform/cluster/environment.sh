# What every process on a cluster's node finds in its environment: sourced before each command of cluster.yaml.
export PATH="$HOME/dgnet/.venv/bin:$HOME/.local/bin:$PATH"
case ":${PYTHONPATH-}:" in
    *:platform:*) ;;  # read again by a shell between Ray and a worker: the job's own copy of this repository stays first
    *) export PYTHONPATH=platform:$HOME/dgnet ;;  # the first in that copy, where a job's processes start
esac
export UV_PYTHON=3.11                 # the same on all nodes: Ray refuses others
export PIP_BREAK_SYSTEM_PACKAGES=1    # new Debians and Ubuntus otherwise refuse `pip install --user uv`
unset OMP_NUM_THREADS PYTHONWARNINGS  # `ray up` sets them: one thread for everything
# Threads soon sleep at barriers: a node is shared by trials and loaders. A policy of your own is obeyed.
[ -n "${OMP_WAIT_POLICY-}" ] || export GOMP_SPINCOUNT="${GOMP_SPINCOUNT-3000}"

export DGNET_STORAGE=/shared/runs     # where jobs keep their runs: a folder that all nodes see
export DGNET_LOCK=$(sha256sum "$HOME/dgnet/uv.lock" | cut -c1-12)
[ ! -e "$HOME/dgnet/bucket.sh" ] || . "$HOME/dgnet/bucket.sh"

export RAY_AUTH_MODE=token            # that of ~/.ray/auth_token: others run nothing here
export RAY_AUTOSCALER_UTILIZATION_SCORER=spot_first.score
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
export RAY_JOB_STOP_WAIT_TIME_S=300   # `ray job stop` lets a run save; Ray would kill it after three seconds

# A node that died is noticed after 15 s, one whose network is gone after half a minute.
export RAY_health_check_period_ms=3000 RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=4
export RAY_gcs_rpc_server_reconnect_timeout_s=30  # a node that has lost the head for so long ends
