"""Ray that cannot be started or joined: the message names the cause and the remedy, in seconds."""

import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dgnet_platform.compute.cluster import cannot_start, check_address
from dgnet_platform.errors import ExperimentError
from tests.helpers.runs import ROOT


def test_a_cluster_that_is_gone_is_refused(free_port: int):
    with pytest.raises(ExperimentError, match=rf"no cluster answers at RAY_ADDRESS=127.0.0.1:{free_port} .*: unset it"):
        check_address(f"127.0.0.1:{free_port}", patience=0)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "head", "head:", "10.0.0.1:port", "1.2.3.4:99999999"]
)
def test_an_address_of_no_cluster_is_refused(address: str):
    with pytest.raises(ExperimentError, match=r"RAY_ADDRESS=.*unset it to start Ray on this machine"):
        check_address(address, patience=0)


def test_another_program_at_the_address_is_refused(free_port: int):
    with ThreadingHTTPServer(("127.0.0.1", free_port), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ExperimentError, match=rf"what listens at RAY_ADDRESS=127.0.0.1:{free_port} is no cluster"):
            check_address(f"127.0.0.1:{free_port}")
        server.shutdown()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /a"),
            "RAY_TMPDIR .*sh",
        ),
        (PermissionError(13, "Permission denied", str(Path.home() / ".ray")), "HOME .*RAY_AUTH_TOKEN_PATH"),
        (FileNotFoundError(2, "No such file or directory", str(Path.home())), "HOME .*RAY_AUTH_TOKEN_PATH"),
        (PermissionError(13, "Permission denied", "/tmp/ray/session_1"), "RAY_TMPDIR .*is yours"),
        (RuntimeError("something of Ray's"), "session_latest/logs"),
    ],
)
def test_each_cause_has_its_remedy(error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(AssertionError, match=remedy):
        raise AssertionError(cannot_start(error))


# ----------------------------------------------------------------------------------------------------------------
# On Ray itself


def run(python: Path | str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of this project's packages, whose Ray ends with it."""
    return subprocess.run(
        [str(python), "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
            "RAY_ADDRESS": "local",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


JOIN = "from dgnet_platform.compute.cluster import join_ray; join_ray(); print('joined')"


@pytest.mark.ray
@pytest.mark.slow
def test_workers_start_from_any_folder(tmp_path: Path):
    """The environment of a checkout in such a folder: its interpreter and its packages."""
    environment = tmp_path / "O'Neil & Söhne; $(exit)" / ".venv"
    (environment / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment)
    (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
    (environment / "bin/python").symlink_to(Path(sys.executable).resolve())
    done = run(environment / "bin/python", JOIN)
    assert "joined" in done.stdout, done.stderr[-2000:]


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_cannot_start_are_told():
    program = (
        "import ray\n"
        "from pathlib import Path\n"
        "from dgnet_platform.compute.cluster import check_first_worker\n"
        "joined = ray.init('local', runtime_env={'py_executable': '/nowhere/python'}, log_to_driver=False)\n"
        "check_first_worker(Path(joined.address_info['session_dir']) / 'logs', patience=20)"
    )
    done = run(sys.executable, program)
    assert "workers cannot start (" in done.stderr
    assert "/nowhere/python" in done.stderr.rpartition("workers cannot start")[2]


@pytest.mark.slow
def test_a_temporary_folder_with_a_long_path_is_told(tmp_path: Path):
    long = tmp_path / ("node0042.cluster" * 6)
    long.mkdir()
    done = run(sys.executable, JOIN, TMPDIR=str(long))
    assert "Ray cannot start on this machine" in done.stderr
    assert "RAY_TMPDIR has to name a folder with a shorter path" in done.stderr


@pytest.mark.slow
def test_a_job_with_the_address_of_a_cluster_that_is_gone_ends(free_port: int):
    done = run(
        sys.executable,
        "import sys; from dgnet_platform.compute import cluster; from dgnet_platform.cli.terminal import run\n"
        "sys.exit(run(lambda *_: cluster.join_ray(), None, []))",
        RAY_ADDRESS=f"127.0.0.1:{free_port}",
    )
    assert done.returncode == 2, done.stderr
    assert f"no cluster answers at RAY_ADDRESS=127.0.0.1:{free_port}" in done.stdout
