"""The files of clusters, as far as nobody has to be paid for them; what is said of machines that do not suit a job."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import pytest
import tyro
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilityRecord, NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from dgnet_platform.cli.options import TuneMarket
from dgnet_platform.compute import cluster as machines
from dgnet_platform.compute.cluster import check_locks, with_offered
from dgnet_platform.compute.placement import Node, place_trials
from dgnet_platform.errors import ExperimentError
from tests.helpers.cluster_files import FOLDER, load, prepare, render
from tests.helpers.runs import ROOT

FILES = [ROOT / "cluster.yaml", FOLDER / "local.yaml", FOLDER / "gcp.yaml"]

# ------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_takes_the_file(path):
    validate_config(prepare_config(load(path)))


def test_a_locale_has_no_say_in_what_is_read(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(f"# für Müller\n{FILES[1].read_text(encoding='utf-8')}", encoding="utf-8")
    code = f"from pathlib import Path; import prepare; prepare.check(Path({str(file)!r}))"
    surroundings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(FOLDER)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | surroundings, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", render.siblings(), ids=lambda path: path.name)
def test_siblings_are_what_cluster_yaml_says(path):
    assert path.read_text() == render.rendered(path), "uv run platform/cluster/render.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_everything_that_is_mounted_or_called_is_there(path):
    config = load(path)
    mounted = {Path(to).name for to in config["file_mounts"]}
    for here in config["file_mounts"].values():
        assert here.startswith("~") or (ROOT / here).exists(), here
    commands = [command for name, value in config.items() if name.endswith("_commands") for command in value]
    called = {Path(word).name for command in commands for word in shlex.split(command) if word.startswith("~/dgnet/")}
    assert called <= mounted | {"bucket.sh"}, called - mounted
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_secrets_stay_in_files_and_machines_of_others_outside(path):
    config = load(path)
    assert {config["file_mounts"][name] for name in ("~/.ray/auth_token", "~/.mlflow/credentials")}
    text = path.read_text()
    assert "0.0.0.0" not in text
    assert "dashboard-host" not in text  # Ray's own is 127.0.0.1
    assert "RAY_AUTH_MODE=token" in (FOLDER / "environment.sh").read_text()


def test_nodes_get_exactly_the_lock_and_jobs_the_environment(tmp_path):
    (tmp_path / "dgnet").mkdir()
    lock = (ROOT / "uv.lock").read_bytes()
    (tmp_path / "dgnet" / "uv.lock").write_bytes(lock)
    shell = f". {FOLDER / 'environment.sh'} && env"
    done = subprocess.run(
        ["bash", "-euc", shell], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    environment = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert environment["PATH"].startswith(f"{tmp_path}/dgnet/.venv/bin:")
    assert environment["PYTHONPATH"].split(":")[0] == "platform"
    assert environment["DGNET_STORAGE"] == "/shared/runs"
    assert "OMP_NUM_THREADS" not in environment
    assert environment["DGNET_LOCK"] == hashlib.sha256(lock).hexdigest()[:12]
    sync = load(FILES[0])["setup_commands"][-1].partition("uv sync")[2].split()
    assert {"--locked", "--no-dev", "--no-install-project", "--compile-bytecode"} <= set(sync)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"aws", "export", "gcp", "postgres"} == set(project["optional-dependencies"])


def test_a_shell_that_starts_a_worker_leaves_the_jobs_paths_alone(tmp_path):
    (tmp_path / "dgnet").mkdir()
    (tmp_path / "dgnet" / "uv.lock").write_text("")
    (tmp_path / ".bashrc").write_text(f". {FOLDER / 'environment.sh'}\n")
    shell = ". ~/.bashrc && export PYTHONPATH=/job:$PYTHONPATH && exec env"
    for again in ("SHLVL=0 SSH_CLIENT=ray", "BASH_ENV=$HOME/.bashrc"):  # on a host reached by SSH, and in a container
        done = subprocess.run(
            ["bash", "-euc", f"{shell} {again} bash -c 'echo $PYTHONPATH'"],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == f"/job:platform:{tmp_path}/dgnet"


def test_ec2_takes_the_instances():
    config = load(FILES[0])
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in config["available_node_types"].items():
        request = {"MinCount": 1, "MaxCount": 1, **kind["node_config"]}
        report = botocore.validate.ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_spot_instances_come_first_and_others_when_there_are_none(monkeypatch):
    kinds = load(FILES[0])["available_node_types"]
    assert kinds["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["on_demand"]["node_config"]
    for kind in ("spot", "on_demand"):
        kinds[kind]["resources"] = {"CPU": 8, "GPU": 1}  # what `ray up` finds out
    monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", "spot_first.score")
    scheduler: Any = ResourceDemandScheduler(None, kinds, 8, "head", 1.0)  # pyright: ignore[reportArgumentType]
    ask: Any = [{"CPU": 1, "GPU": 1}] * 2

    def started(**available: bool) -> dict[str, int]:
        known = {
            name: NodeAvailabilityRecord(name, is_available, 0.0, None) for name, is_available in available.items()
        }
        scorer = partial(scheduler.utilization_scorer, node_availability_summary=NodeAvailabilitySummary(known))
        nodes, left = get_nodes_for(kinds, {}, "head", 8, ask, scorer)
        assert not left
        return dict(nodes)

    assert started() == started(spot=True) == started(spot=True, on_demand=True) == {"spot": 2}
    assert started(spot=False) == {"on_demand": 2}
    assert started(spot=False, on_demand=False) == {"spot": 2}


def test_pods_have_what_the_manifest_speaks_of():
    cluster, types, claim, job = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    assert [part["kind"] for part in (cluster, types, claim, job)] == [
        "RayCluster", "ConfigMap", "PersistentVolumeClaim", "Job",
    ]  # fmt: skip
    spec = cluster["spec"]
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    [ray] = [package["version"] for package in lock["package"] if package["name"] == "ray"]
    assert spec["rayVersion"] == ray
    [workers] = spec["workerGroupSpecs"]
    for group in (spec["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    offered = with_offered([Node(cpus=0)], yaml.safe_load(types["data"]["node-types"]))[1:]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert offered == [Node(cpus=limits["cpu"], gpus=limits["nvidia.com/gpu"])] * workers["maxReplicas"]

    submitter = job["spec"]["template"]["spec"]
    [container] = submitter["containers"]
    head = spec["headGroupSpec"]["template"]["spec"]
    assert container["image"] == head["containers"][0]["image"]
    [secrets] = submitter["volumes"]
    assert secrets in head["volumes"]
    ray_, job_, submit, *arguments = [*container["command"], *container["args"]]
    assert (ray_, job_, submit) == ("ray", "job", "submit")
    command: Any = ray_cli.commands["job"].commands["submit"]  # pyright: ignore[reportAttributeAccessIssue]
    parsed = command.make_context("submit", arguments).params
    assert parsed["address"] == f"http://{cluster['metadata']['name']}-head-svc:8265"
    assert json.loads(parsed["runtime_env_json"]).keys() == {"working_dir"}
    python, script, *options = parsed["entrypoint"]
    assert python == "python"
    assert (ROOT / script).exists()
    tyro.cli(TuneMarket, args=options)


def test_the_page_calls_what_there_is():
    section = (ROOT / "docs" / "cluster.md").read_text()
    calls = re.findall(r"uv run ray ([a-z-]+(?: (?:submit|list|logs|stop))?)", section)
    assert {"up", "dashboard", "job submit", "job logs", "job stop", "exec", "rsync-up", "down"} <= set(calls)
    for call in calls:
        first, *rest = call.split()
        command: Any = ray_cli.commands[first]
        assert not rest or rest[0] in command.commands, call
    named = re.findall(r"(?:jobs|platform)/[\w/]+\.(?:py|yaml)", section)
    assert {"platform/cluster/prepare.py", "jobs/tune_market.py"} <= set(named)
    for path in named:
        assert (ROOT / path).exists(), path
    assert sum("# (" in line for line in FILES[0].read_text().splitlines()) == 3, "its three marked lines"


# ------------------------------------------------------------------------------------------------------------
# Before `ray up`


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home without secrets."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(prepare, "TOKEN", tmp_path / ".ray" / "auth_token")
    for name in ("CREDENTIALS",):
        monkeypatch.setattr(prepare, name, tmp_path / ".mlflow" / "credentials")
        monkeypatch.setattr(sys.modules["mlflow_server"], name, tmp_path / ".mlflow" / "credentials")
    monkeypatch.chdir(ROOT)
    return tmp_path


def test_secrets_are_made_once_for_their_owner_alone(home, capsys):
    prepare.prepare(FOLDER / "local.yaml")
    token, credentials = home / ".ray" / "auth_token", home / ".mlflow" / "credentials"
    before = token.read_text(), credentials.read_text()
    assert token.stat().st_mode & 0o777 == credentials.stat().st_mode & 0o777 == 0o600
    prepare.prepare(FOLDER / "local.yaml")
    assert before == (token.read_text(), credentials.read_text())
    assert len(before[0]) == 64
    printed = capsys.readouterr()
    assert before[0] not in printed.out + printed.err
    assert before[1].split()[-1] not in printed.out + printed.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_worker": 3}, "max_worker"),
        ({"head_node_type": "heads"}, "head_node_type"),
        ({"setup_commands": "ls"}, "setup_commands|list"),
        ({"max_workers": 0}, "more min_workers|max_workers"),
    ],
)
def test_a_file_that_ray_would_not_take_is_refused(tmp_path, change, said):
    config = load(FILES[0]) | change
    config["available_node_types"]["spot"]["min_workers"] = 9 if "max_workers" in change else 0
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(prepare.PrepareError, match=said):
        prepare.check(path)


# ------------------------------------------------------------------------------------------------------------
# Machines


def config(**kinds: dict[str, Any]) -> dict[str, Any]:
    return {"max_workers": 3, "head_node_type": "head", "available_node_types": {"head": {"resources": {}}, **kinds}}


def test_what_an_autoscaler_may_add_counts():
    head, big = Node(cpus=0), Node(cpus=8, gpus=4)
    kinds = {
        "small": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
        "big": {"resources": {"CPU": 8, "GPU": 4}, "max_workers": 2},
    }
    assert with_offered([head], config(**kinds)) == [head, big, big, Node(cpus=8, gpus=1)]
    assert with_offered([head, big, big], config(**kinds)) == [head, big, big, big]
    assert with_offered([head, *[big] * 3], config(**kinds)) == [head, *[big] * 3]
    assert with_offered([head], {}) == [head]
    assert with_offered([head], config(machines={"resources": {}, "max_workers": 3})) == [head]  # nobody knows of what
    assert place_trials(with_offered([head], config(**kinds)), workers=2, gpus=2, concurrent=0).concurrent == 4


@pytest.mark.parametrize(("gpus", "offered", "refused"), [(True, 2, True), (True, 4, False), (False, 4, False)])
def test_more_gpus_than_any_node_type_has_are_refused(tmp_path, monkeypatch, gpus, offered, refused):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.10:6379")
    monkeypatch.setattr(machines.ray, "cluster_resources", lambda: {})
    monkeypatch.setattr(machines.ray, "available_resources", lambda: {})
    monkeypatch.setattr(machines, "alive", lambda: [{"Resources": {}}])
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        json.dumps(config(gpu={"resources": {"CPU": 4, "GPU": offered}, "max_workers": 1}))
    )
    monkeypatch.setattr(machines, "_CONFIG", tmp_path / "ray_bootstrap_config.yaml")
    capacity = machines.capacity_for(4, gpus)
    if not refused:
        machines.check_capacity("4", capacity)
        return
    with pytest.raises(ExperimentError, match=r"--workers 4: 4 workers need 4 GPUs.* can have 2: .*max_workers"):
        machines.check_capacity("4", capacity)


def test_machines_with_another_lock_are_refused(tmp_path):
    lock = tmp_path / "uv.lock"
    digest = hashlib.sha256(b"lock").hexdigest()[:12]
    good, other = (
        {"NodeManagerAddress": f"10.0.0.{n}", "Labels": {"dgnet-lock": label}} for n, label in ((1, digest), (2, "abc"))
    )
    silent = {"NodeManagerAddress": "10.0.0.3", "Labels": {}}
    check_locks([good, other], lock)  # the job has none
    lock.write_text("lock")
    check_locks([good, silent], lock)
    with pytest.raises(ExperimentError, match=r"^10.0.0.2: .*`ray up`"):
        check_locks([good, other, silent], lock)


@pytest.mark.parametrize(
    ("cloud", "answer", "seconds"), [("meta-data/spot", '{"action": "terminate"}', 110), ("google", "TRUE", 25)]
)
def test_ray_is_told_when_a_cloud_takes_a_machine_back(tmp_path, cloud, answer, seconds):
    programs = {
        # knows nothing at first; then the one cloud answers
        "curl": f"""
            case "$*" in
            *api/token*) [ {cloud} != google ] && echo token ;;
            *{cloud}*) [ -e ~/asked ] && echo '{answer}' || {{ touch ~/asked; false; }} ;;
            *) false ;;
            esac""",
        "sleep": "true",
        "ray": 'echo "$@" >> ~/told',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "dgnet").mkdir()
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", FOLDER / "spot_notice.sh"], env=environment, check=True, timeout=60)
    assert (tmp_path / "asked").exists()
    assert (
        f"DRAIN_NODE_REASON_PREEMPTION --reason-message the cloud takes it back --deadline-remaining-seconds {seconds}"
        in (tmp_path / "told").read_text()
    )
