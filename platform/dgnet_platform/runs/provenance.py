"""Which code is running: what checkpoints and runs are marked with."""

import ast
import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dgnet_core

_FOLDERS = (Path(dgnet_core.__file__).parent, Path(__file__).parents[1])
"""Of the two packages."""
_TRAINING = ("dgnet_platform.training.loop", "dgnet_platform.training.learner")
"""What they import, directly or not, has a say in a run's state and curves."""


@cache
def code_version() -> str:
    """The package's version and, where its source is under version control, the git commit.

    Such as `0.1.0+5d3f...`, with `-dirty` behind it when tracked files were changed since. Elsewhere, as in the code
    that travels with a cluster's job, `0.1.0+sources.` and the start of its digest.
    """
    try:
        package = version("dgnet-on-ray")
    except PackageNotFoundError:
        package = "unknown"
    source = Path(__file__).resolve()
    try:
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        commit = _git(source.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return f"{package}+sources.{_digest_of(file for folder in _FOLDERS for file in folder.rglob('*.py'))[:12]}"
    return f"{package}+{commit}"


@cache
def training_digest(folders: tuple[Path, ...] = _FOLDERS) -> str:
    """SHA-256 of the sources that have a say in a run's state and curves, whatever version they are called.

    Args:
        folders: of the packages, each with the package's name.
    """
    return _digest_of(_reached(_TRAINING, {folder.name: folder for folder in folders}))


def _reached(names: Iterable[str], folders: Mapping[str, Path]) -> set[Path]:
    """Files of the modules that some modules import, directly or not, as their import statements say."""
    waiting, seen, files = list(names), set[str](), set[Path]()
    while waiting:
        name = waiting.pop()
        package, *rest = name.split(".")
        if name in seen or package not in folders:
            continue
        seen.add(name)
        path = folders[package].joinpath(*rest)
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.exists():
            continue  # no module, but a name in one
        files.add(file)
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return files


def _digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of sources and of where they are in their package."""
    contents = {}
    for file in files:
        package = next(folder for folder in file.parents if not (folder.parent / "__init__.py").exists())
        contents[file.relative_to(package.parent).as_posix()] = file.read_bytes()
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _git(folder: Path, *command: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    )
    return answer.stdout.strip()
