"""The house rules that no linter knows: what may be imported where, and when."""

import ast
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dgnet_core.methods import METHODS

ROOT = Path(__file__).parents[1]


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


PLATFORM = ROOT / "platform" / "dgnet_platform"
ASK_METHODS = {"runs/loading.py": 3, "runs/presets.py": 3}
"""Files of the platform that may ask which method something is of, and how often each does."""
IMPORT_METHODS = {
    "cli/experiments.py", "evaluation/canonical.py", "evaluation/judges.py", "runs/experiment.py", "runs/lengths.py",
    "runs/loading.py", "runs/presets.py", "search/", "tables/changes.py", "tables/rows.py", "training/learner.py",
}  # fmt: skip
"""Files and rooms of the platform that may import from a method's folder."""


def parsed(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def imports_of_methods(nodes: list[ast.AST]) -> set[str]:
    """What a file imports from the folders of methods, by the names that it has there."""
    found = set()
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            package, folder, *_ = f"{node.module}.{alias.name}".split(".")
            if package == "dgnet_core" and folder in METHODS:
                found.add(alias.asname or alias.name)
    return found


def asks_of_methods(nodes: list[ast.AST]) -> int:
    """How often a file asks which method something is of: by class, by name, or by one row of the table."""
    classes = imports_of_methods(nodes)

    def names_one(node: ast.AST) -> bool:
        parts = list(ast.walk(node))
        classed = any(isinstance(part, ast.Name) and part.id in classes for part in parts)
        return classed or any(isinstance(part, ast.Constant) and part.value in METHODS for part in parts)

    count = 0
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kind]):
                count += names_one(kind)
            case ast.Compare():
                count += names_one(node)
            case ast.Subscript(value=ast.Name(id="METHODS")):
                count += names_one(node.slice)
            case ast.match_case():
                count += names_one(node.pattern)
            case _:
                pass
    return count


def test_the_platform_asks_the_table_of_methods() -> None:
    found = {file.relative_to(PLATFORM).as_posix(): parsed(file) for file in PLATFORM.rglob("*.py")}
    counts = {name: count for name, nodes in found.items() if (count := asks_of_methods(nodes))}
    assert counts == ASK_METHODS, "what differs by method is a field of its row in dgnet_core/methods.py"
    importing = {name for name, nodes in found.items() if imports_of_methods(nodes)}
    covered = {
        name: next((allowed for allowed in IMPORT_METHODS if name.startswith(allowed)), None) for name in importing
    }
    assert None not in covered.values(), [name for name, allowed in covered.items() if allowed is None]
    assert set(covered.values()) == IMPORT_METHODS, "an exception that is not needed any more"


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
    ("evaluate", "--store {missing} --out {missing} --teacher {missing}", {"pandas", "pyarrow"}),
    ("generate", "--checkpoint {missing} --store {missing} --out {missing}", {"pandas", "pyarrow"}),
    ("train_generator", "--iterations 0", set()),
    ("train_generator", "--data {missing}", {"pandas", "pyarrow"}),
    ("measure", "--store {missing} --out {missing}", set()),
    ("measure", "--store {missing} --out {missing} --generated {missing}", {"pandas", "pyarrow"}),
    ("export", "--checkpoint {missing} --out {missing} --formats", set()),
    ("compare_generators", "--out {missing} --seeds 0", set()),
    ("compare_generators", "--out {missing} --store {missing}", {"pandas", "pyarrow"}),
    ("paper_tables", "--seeds 0", set()),
    ("paper_tables", "--iterations 0 --dry-run", set()),
    ("paper_tables", "--config {unknown_key}", set()),
    ("paper_tables", "--data {missing} --dry-run", {"pandas", "pyarrow"}),
    ("paper_tables", "--stores {missing}", {"pandas", "pyarrow"}),
    ("generate", "--checkpoint {missing} --store {missing} --out {missing} --per-image 0", set()),
    ("prepare_data", "--dataset market1501 --out {missing}", set()),
]
EVERY_JOB = (
    "prepare_data", "train_teacher", "train_market", "train_generator", "tune_market", "paper_tables", "evaluate",
    "generate", "measure", "compare_generators", "export",
)  # fmt: skip


CASES = [
    *((job, "--help", 0, set[str]()) for job in EVERY_JOB),
    *((job, "--no-such-option", 2, set[str]()) for job in EVERY_JOB),
    *((job, arguments, 2, may_import) for job, arguments, may_import in REFUSED),
]
ANSWER = """
import importlib, json, os, sys

jobs, cases, heavy = json.load(sys.stdin)
mains = {job: importlib.import_module(f"jobs.{job}").main for job in jobs}
answers = []
for job, arguments in cases:
    out, into = os.pipe()
    if os.fork() == 0:  # it imports for itself alone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            status = mains[job](arguments)
        except SystemExit as stop:
            status = stop.code
        os.write(into, json.dumps([status, sorted(set(heavy) & sys.modules.keys())]).encode())
        os._exit(0)
    os.close(into)
    answers.append(os.fdopen(out).read())
    os.wait()
print(json.dumps(answers))
"""
"""Answers command lines, each in a process of its own that has imported the jobs and nothing else."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    folder = tmp_path_factory.mktemp("answers")
    (folder / "unknown_key.yaml").write_text("kep: 3")
    names = {"unknown_key": folder / "unknown_key.yaml", "missing": folder / "missing"}
    cases = [(job, arguments.format(**names).split()) for job, arguments, *_ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", ANSWER], input=json.dumps([EVERY_JOB, cases, sorted(HEAVY)]), cwd="/", check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT}/platform"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return dict(zip([case[:2] for case in CASES], json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("job", "arguments", "status", "may_import"), CASES)
def test_a_command_line_is_answered_before_anything_heavy_is_imported(
    job: str, arguments: str, status: int, may_import: set[str], answers: dict[tuple[str, str], str]
) -> None:
    found, imported = json.loads(answers[job, arguments])
    assert found == status
    assert not set(imported) - may_import
