"""Which code is running: what checkpoints and runs are marked with."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """The package's version and, where its source is under version control, the git commit.

    Such as `0.1.0+5d3f...`, with `-dirty` behind it when tracked files were changed since.
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
        return package
    return f"{package}+{commit}"


def _git(folder: Path, *command: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    )
    return answer.stdout.strip()
