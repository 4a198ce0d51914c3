"""Which code is running: what checkpoints and runs are marked with."""

import hashlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dgnet_core

_CORE, _PLATFORM = Path(dgnet_core.__file__).parent, Path(__file__).parents[1]
_TRAINING = ("training", "evaluation/swaps.py", "data")
"""What of the platform has a say in a run's state and curves."""


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
        return f"{package}+sources.{_digest_of(_CORE, _PLATFORM)[:12]}"
    return f"{package}+{commit}"


@cache
def training_digest() -> str:
    """SHA-256 of the sources that have a say in a run's state and curves, whatever version they are called."""
    return _digest_of(_CORE, *(_PLATFORM / name for name in _TRAINING))


def _digest_of(*places: Path) -> str:
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(place.parent)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _git(folder: Path, *command: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    )
    return answer.stdout.strip()
