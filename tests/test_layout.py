"""The house rules that no linter knows: what may be imported where, and that jobs run by path."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = sorted(p for p in (ROOT / "jobs").glob("*.py") if p.name != "__init__.py")


PLANTED = {
    "jobs -> dgnet_platform -> dgnet_core": ("dgnet_core/checks.py", "dgnet_platform.errors"),
    "rooms of the platform: down only": ("platform/dgnet_platform/storage/files.py", "dgnet_platform.runs.run"),
    "rooms of the core: a method knows no other, but DG-Net its teacher": (
        "dgnet_core/networks/blocks.py", "dgnet_core.dgnet.step",
    ),
    "no cycles": ("dgnet_core/learning/config.py", "dgnet_core.learning.batches"),
    "MLflow has one face": ("platform/dgnet_platform/runs/run.py", "mlflow"),
    "Optuna proposes in search only": ("platform/dgnet_platform/training/loop.py", "optuna"),
    "Ray runs compute, training, search and tables": ("platform/dgnet_platform/runs/run.py", "ray"),
    "options are read in cli and jobs only": ("platform/dgnet_platform/runs/run.py", "argparse"),
    "the core is pure PyTorch": ("dgnet_core/checks.py", "os"),
    "jobs do not import each other": ("jobs/train_market.py", "jobs.tune_market"),
}  # fmt: skip
"""For each import contract a file, and an import in it that breaks the contract."""


def run(code: str, **environment: str) -> str:
    command, environment = [sys.executable, "-c", code], {"PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_standard_library_platform_stays_importable() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    out = run("import platform, uuid; print(platform.system())", PYTHONPATH=str(ROOT))
    assert out.strip()


def test_no_test_file_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            shared = [name for name in names if "test_" in name or name.startswith("tests.conftest")]
            assert not shared, f"{path.relative_to(ROOT)} imports {shared}: what tests share is in tests/helpers"


def test_folders_of_tests_hide_nothing() -> None:
    assert not (ROOT / "tests" / "platform").exists(), "it would hide the standard library's platform"
    assert not list((ROOT / "tests").rglob("__init__.py")), "test files are found by path"


def test_every_import_contract_can_fail(tmp_path: Path) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert PLANTED.keys() == {contract["name"] for contract in contracts}, "plant an import for each contract"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("dgnet_core", "platform", "jobs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, name in PLANTED.values():
        with (tmp_path / file).open("a") as module:
            module.write(f"\nimport {name}\n")
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{tmp_path}/platform", "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    broken = {line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")}
    assert broken == PLANTED.keys(), done.stdout


def test_core_needs_torch_torchvision_and_numpy_only() -> None:
    code = """
import importlib, pkgutil, sys
for name in ("ray", "mlflow", "optuna", "pandas", "pyarrow", "tyro", "rich"):
    sys.modules[name] = None
import dgnet_core
for module in pkgutil.walk_packages(dgnet_core.__path__, "dgnet_core."):
    importlib.import_module(module.name)
import jobs.bench_step
"""
    run(code, PYTHONPATH=str(ROOT))


def test_rays_workers_do_not_get_a_copy_of_uvs_environment() -> None:
    code = "import jobs.tune_market, ray._private.ray_constants as r; assert not r.RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    run(code, PYTHONPATH=f"{ROOT}:{ROOT}/platform")


@pytest.mark.parametrize(
    ("own", "found"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_soon_sleep_at_barriers_unless_the_user_says_otherwise(own: dict[str, str], found: str | None) -> None:
    code = f"""
import sys, os, dgnet_platform.cli.commands
assert "torch" not in sys.modules, "OpenMP has read its settings"
assert os.environ.get("GOMP_SPINCOUNT") == {found!r}
"""
    run(code, PYTHONPATH=f"{ROOT}:{ROOT}/platform", **own)


def test_training_starts_without_what_takes_seconds_to_import() -> None:
    code = """
import sys, dgnet_platform.cli.train
assert not {"torchvision", "torch._dynamo", "mlflow.pytorch", "matplotlib"} & sys.modules.keys()
"""
    run(code, PYTHONPATH=f"{ROOT}:{ROOT}/platform")


HEAVY = {"torch", "ray", "mlflow", "optuna", "pandas", "pyarrow", "matplotlib"}
REFUSED = [
    ("train_market", "--iterations 0", set()),
    ("train_market", "--config {unknown_key}", set()),
    ("train_market", "--preset nope", set()),
    ("train_market", "--data {missing}", {"pandas", "pyarrow"}),
    ("train_teacher", "--iterations 0", set()),
    ("train_teacher", "--data {missing}", {"pandas", "pyarrow"}),
    ("tune_market", "--trials nought", set()),
    ("tune_market", "--iterations 0", {"optuna"}),
    ("tune_market", "--config {unknown_key}", {"optuna"}),
    ("tune_market", "--set alpha=nought", {"optuna"}),
    ("tune_market", "--data {missing}", {"optuna", "pandas", "pyarrow"}),
    ("evaluate", "--store {missing} --out {missing}", set()),
    ("generate", "--checkpoint {missing} --store {missing} --out {missing} --per-image 0", set()),
    ("prepare_data", "--dataset market1501 --out {missing}", set()),
]
EVERY_JOB = ("prepare_data", "train_teacher", "train_market", "tune_market", "evaluate", "generate")


@pytest.mark.parametrize(
    ("job", "arguments", "status", "may_import"),
    [
        *((job, "--help", 0, set()) for job in EVERY_JOB),
        *((job, "--no-such-option", 2, set()) for job in EVERY_JOB),
        *((job, arguments, 2, may_import) for job, arguments, may_import in REFUSED),
    ],
)
def test_a_command_line_is_answered_before_anything_heavy_is_imported(
    job: str, arguments: str, status: int, may_import: set[str], tmp_path: Path
) -> None:
    unknown_key = tmp_path / "unknown_key.yaml"
    unknown_key.write_text("kep: 3")
    given = arguments.format(unknown_key=unknown_key, missing=tmp_path / "missing").split()
    code = f"""
import sys
from jobs.{job} import main
try:
    status = main({given})
except SystemExit as stop:
    status = stop.code
assert status == {status}, status
imported = {HEAVY - may_import} & sys.modules.keys()
assert not imported, imported
"""
    run(code, PYTHONPATH=f"{ROOT}:{ROOT}/platform")


@pytest.mark.parametrize("job", JOBS, ids=lambda p: p.stem)
def test_jobs_run_by_path_and_explain_themselves(job: Path) -> None:
    done = subprocess.run([sys.executable, job, "--help"], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100
    assert job.stat().st_mode & 0o111, f"{job} is not executable"
    assert job.read_text(encoding="utf-8").startswith("#!"), f"{job} has no shebang"
