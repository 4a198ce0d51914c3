"""The journal: a run's own record of its metrics and pictures, one line of JSON an iteration.

It is the truth that MLflow is filled from. A line costs some microseconds, never waits for a server, and is written
once it is complete. A run that resumes from a checkpoint drops the lines after it, and writes them anew.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgnet_platform.storage.files import appearing, naming

JOURNAL = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line: what is known after so many iterations."""

    iteration: int
    """Iterations done."""
    time: int
    """Milliseconds since 1970."""
    metrics: Mapping[str, float]
    pictures: Mapping[str, str] = field(default_factory=dict)
    """File by name, relative to the run's folder."""


class Journal:
    """Writes a run's journal."""

    def __init__(self, folder: Path, iteration: int):
        """Open the journal of a run that resumes after `iteration`; later lines, and half a line, are dropped.

        Raises:
            OSError: it cannot be written.
        """
        self._path = folder / JOURNAL
        if self._path.exists():
            copy(self._path, self._path, iteration)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, iteration: int, metrics: Mapping[str, float], pictures: Mapping[str, str] | None = None) -> None:
        """Append a line; arguments as in `Entry`."""
        values: dict[str, Any] = {"iteration": iteration, "time": time.time_ns() // 1_000_000, "metrics": metrics}
        with naming(self._path):
            self._file.write(json.dumps(values | ({"pictures": pictures} if pictures else {})) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk: before a checkpoint that counts on them."""
        with naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more lines will come."""
        with naming(self._path):
            self._file.close()


class Tail:
    """Reads a journal while it is written. Lines that a resumed run writes anew are not repeated."""

    def __init__(self, folder: Path, after: int = 0):
        """Read the journal in a run's folder, from the first line later than iteration `after`."""
        self._path = folder / JOURNAL
        self._file, self._offset = 0, 0
        self.iteration = after

    def read(self, most: int | None = None) -> Iterator[Entry]:
        """Entries that were not read yet, at most so many; nothing when there are none now."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            if (number := os.fstat(file.fileno()).st_ino) != self._file:  # a resumed run dropped lines
                self._file, self._offset = number, 0
            file.seek(self._offset)
            while most is None or most > 0:
                line = file.readline()
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                entry = _parse(line)
                if entry is not None and entry.iteration > self.iteration:
                    self.iteration = entry.iteration
                    most = most if most is None else most - 1
                    yield entry


def read(folder: Path) -> Iterator[Entry]:
    """All of a run's journal, line by line; nothing if there is none."""
    return Tail(folder).read()


def _parse(line: bytes) -> Entry | None:
    """The entry of a line, or None for a line that a crash left damaged."""
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None


def copy(source: Path, target: Path, iteration: int) -> None:
    """Write the lines of a journal up to `iteration` as a new file: who reads what was there before notices."""
    with appearing(target) as partial, source.open("rb") as file, partial.open("wb") as kept:
        for line in iter(file.readline, b""):
            entry = _parse(line) if line.endswith(b"\n") else None
            if entry is not None and entry.iteration <= iteration:
                kept.write(line)
