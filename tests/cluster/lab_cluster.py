"""A cluster as `ray up platform/cluster/local.yaml` makes it of the lab's hosts, and what an operator does with it."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.driver import train
from tests.cluster.lab import ADDRESSES, HEAD, OPERATOR, ROOT, WORKERS, Lab, wait_for
from tests.helpers.runs import QUIET, lines, tiny_experiment

FILE = "~/local.yaml"
"""The operator's copy of platform/cluster/local.yaml, with his hosts in it."""
START, ITERATIONS, EVERY = 20, 50, 5
"""A trial's warm-up start, where its prefix ends, its length, and the distance of its checkpoints."""
SEARCH = (
    "tune_market.py --name search --data /shared/people --teacher /shared/teacher --config /shared/base.yaml --trials 2"
    f" --workers-per-trial 2 --stopping.kind none --set generated_identity=0.5 ramp=4 alpha=0.3 warmup_start={START}"
)
"""A search, but for its storage, of what `furnish` puts there: its trials have two hosts each."""


class Cluster:
    """The operator's view of it."""

    def __init__(self, lab: Lab):
        self.lab = lab

    def up(self) -> None:
        """`ray up`, as the README says; returns once the job server can be reached and all workers are there."""
        workers = ", ".join(ADDRESSES[name] for name in WORKERS)
        mine = {"head_ip": ADDRESSES[HEAD], "worker_ips": f"[{workers}]", "ssh_user": "root"}
        edits = " ".join(f"-e 's/{name}: .*/{name}: {value}/'" for name, value in mine.items())
        self.run(f"sed {edits} platform/cluster/local.yaml > {FILE}")
        self.run(f"python platform/cluster/prepare.py {FILE}")
        self._password = self.run("sed -n 's/.*password = //p' ~/.mlflow/credentials").strip()
        self.run(f"ray up -y {FILE}", timeout=300)
        self.run(f"setsid ray dashboard {FILE} > /tmp/dashboard.log 2>&1 < /dev/null &")
        wait_for(lambda: self.alive() == {HEAD, *WORKERS}, 240, "workers")

    def down(self) -> None:
        """`ray down`, which only asks the head; workers end when they miss it."""
        self.run(f"ray down -y {FILE}", timeout=120)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command of the operator's in the repository."""
        setup = ". ~/dgnet/.venv/bin/activate; export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://localhost:8265"
        return self.lab.start(OPERATOR, f"{setup}; cd {ROOT}; {command}")

    def run(self, command: str, *, status: int = 0, timeout: float = 60) -> str:
        """Run one, and return what it printed; raises AssertionError if it ended with another status."""
        output, _ = (process := self.start(command)).communicate(timeout=timeout)
        assert process.returncode == status, f"{command}\nstatus {process.returncode}\n{output}"
        return output

    def submit(self, job: str, options: str = "") -> subprocess.Popen[str]:
        """Submit a job of the repository, as its command line after jobs/; it is followed to its end."""
        return self.start(f"ray job submit --working-dir . {options} -- python jobs/{job}")

    def alive(self) -> set[str]:
        """Names of the hosts that Ray knows to be alive."""
        answer = self._curl('-H "Authorization: Bearer $(cat ~/.ray/auth_token)"', "http://localhost:8265/api/v0/nodes")
        if answer is None:
            return set()
        nodes = answer["data"]["result"]["result"]
        names = {address: name for name, address in ADDRESSES.items()}
        return {names[node["node_ip"]] for node in nodes if node["state"] == "ALIVE"}

    def mlflow(self, call: str, **values: Any) -> dict[str, Any]:
        """The MLflow server's answer to a call of its REST API."""
        what = f"-u admin:{self._password} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(values))}"
        answer = self._curl(what, f"http://{ADDRESSES[HEAD]}:5000/api/2.0/mlflow/{call}")
        assert answer is not None, f"no answer to {call}"
        assert "error_code" not in answer, answer
        return answer

    def _curl(self, options: str, address: str) -> dict[str, Any] | None:
        """An answer in JSON; None if there is none."""
        try:
            return json.loads(self.lab.run(OPERATOR, f"curl -sS --max-time 10 {options} {address}"))
        except (AssertionError, ValueError):
            return None


def furnish(shared: Path, store: Path, scratch: Path) -> None:
    """Put what a tiny run needs into the shared folder: people, teacher, and base.yaml with its settings.

    Args:
        shared: the folder.
        store: the smallest set of drawn people.
        scratch: where the teacher may be trained.
    """
    base = tiny_experiment(store, scratch, evaluate_every=ITERATIONS // 2, checkpoint_every=EVERY)
    base = replace(base, model=replace(base.model, iterations=ITERATIONS))
    shutil.copytree(store, shared / "people")
    shutil.copytree(train(teacher_of(base), console=QUIET).run.last_checkpoint, shared / "teacher")
    settings = to_dict(base)
    del settings["data"], settings["storage"]
    (shared / "base.yaml").write_text(yaml.safe_dump(settings))


def wait_while(job: subprocess.Popen[str], condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds while a job is under way."""
    wait_for(lambda: job.poll() is not None or condition(), 300, what)
    assert job.poll() is None, job.communicate()[0]


def starts(folder: Path) -> list[dict[str, Any]]:
    """When, from which iteration and on which hosts a run was started."""
    file = folder / "starts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def hosts_of(start: dict[str, Any]) -> list[str]:
    return [host.split()[0] for host in start["hosts"]]


def done(folder: Path) -> int:
    """Iterations in a run's journal."""
    return len(lines(folder)) if (folder / "metrics.jsonl").exists() else 0
