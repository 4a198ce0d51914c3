"""Work done in parts, by this process or by Ray's actors: a command that was killed resumes with the missing ones.

Workers make the files of a part, wherever they run. This process alone writes them, so only it needs to see the folder;
a part appears there at once and whole.
"""

import json
import logging
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dgnet_platform.compute.devices import own_device
from dgnet_platform.errors import UserError
from dgnet_platform.storage.files import appearing, locked, write_whole
from dgnet_platform.storage.serialize import differences

RECORD = "settings.json"
RESTARTS = 3
"""How often a worker that was lost is started again."""

_log = logging.getLogger(__name__)


class PartsError(UserError):
    """Parts that cannot be made as asked; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive rows of a split."""

    name: str
    split: str
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


Files = dict[str, bytes]
"""Contents of files by name."""
Work = Callable[..., Callable[[Part], Files]]
"""A class that, given a `device` and arguments, makes what maps a part to its files."""


def parts_of(split: str, rows: int, size: int) -> list[Part]:
    """A split in parts of `size` rows; the last has what is left."""
    firsts = range(0, rows, size)
    return [
        Part(name=f"{split}-{number:05d}", split=split, first=first, stop=min(first + size, rows))
        for number, first in enumerate(firsts)
    ]


@contextmanager
def owned(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Have a folder for the parts of one job to oneself; its record says with what settings they are made.

    Args:
        folder: made if need be; one with parts is completed.
        settings: all that decides what the parts hold, as JSON has it.

    Raises:
        PartsError: it holds something else, or parts of other settings.
        UserError: another process is writing there.
    """
    if folder.exists() and not folder.is_dir():
        raise PartsError(f"{folder} is a file: name a folder")
    busy = f"{folder} is being written by another run: wait for it, or name another --out"
    with locked(folder / ".lock", busy):
        _check_record(folder, settings)
        yield


def missing(folder: Path, parts: Sequence[Part]) -> list[Part]:
    """The parts that are not in a folder yet."""
    return [part for part in parts if not (folder / part.name).exists()]


def make_parts(
    folder: Path,
    parts: Sequence[Part],
    work: Work,
    arguments: Mapping[str, Any],
    *,
    workers: int,
    gpus: bool | None,
    progress: Callable[[Part], None],
) -> None:
    """Make parts and write each to a folder of its name.

    Args:
        folder: owned.
        parts: what to make.
        work: how; what it raises, this function raises.
        arguments: can be pickled; each goes to each machine once.
        workers: Ray's actors, with a CPU each; 0: this process.
        gpus: whether each has a GPU too; None: if there is one.
        progress: called with each part when it is written.

    Raises:
        ExperimentError: Ray cannot be joined, or there are fewer CPUs or GPUs than workers.
        PartsError: workers are lost again and again.
    """
    if not parts:
        return
    made = _on_workers(parts, work, arguments, workers, gpus) if workers else _here(parts, work, arguments, gpus)
    with closing(made):  # the workers end at once, whatever happens here
        for part, files in made:
            _write(folder, part.name, files)
            progress(part)


def _here(
    parts: Sequence[Part],
    work: Work,
    arguments: Mapping[str, Any],
    gpus: bool | None,
) -> Generator[tuple[Part, Files]]:
    make = work(device=own_device(gpu=gpus is not False), **arguments)
    for part in parts:
        yield part, make(part)


def _on_workers(
    parts: Sequence[Part],
    work: Work,
    arguments: Mapping[str, Any],
    workers: int,
    gpus: bool | None,
) -> Generator[tuple[Part, Files]]:
    import ray  # takes seconds, and is needed with workers only
    from ray.exceptions import RayError

    from dgnet_platform.compute import cluster as machines

    machines.join_ray()
    gpus = ray.cluster_resources().get("GPU", 0) > 0 if gpus is None else gpus
    capacity = machines.capacity_for(workers, gpus)
    machines.check_capacity(str(workers), capacity)
    if capacity.free < capacity.needed:
        _log.warning("%s: some wait until there is room", capacity)
    kind: Any = ray.remote(_Actor).options(
        num_cpus=1, num_gpus=int(gpus), max_restarts=RESTARTS, max_task_retries=-1
    )  # fmt: skip
    shared, device = ray.put(dict(arguments)), torch.device("cuda" if gpus else "cpu")
    actors = [kind.remote(work, device, shared) for _ in range(min(workers, len(parts)))]
    waiting, left = {actor.__ray_ready__.remote(): actor for actor in actors}, deque(parts)
    by_name = {part.name: part for part in parts}
    try:
        while by_name:  # an actor gets a part once it is there: some may wait for room until the end
            (done,), _ = ray.wait(list(waiting))
            actor, answer = waiting.pop(done), ray.get(done)
            if left:
                waiting[actor.make.remote(left.popleft())] = actor
            match answer:
                case Exception():
                    raise answer
                case name, files:
                    yield by_name.pop(name), files
    except RayError as error:
        raise PartsError(f"the workers failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        for actor in actors:
            ray.kill(actor)


class _Actor:
    """Makes parts in a process of Ray's."""

    def __init__(self, work: Work, device: torch.device, arguments: Mapping[str, Any]) -> None:
        self._work, self._device, self._arguments = work, device, arguments

    @cached_property
    def _make(self) -> Callable[[Part], Files]:
        return self._work(device=self._device, **self._arguments)

    def make(self, part: Part) -> tuple[str, Files] | Exception:
        """A part's name and files, or what the work raised."""
        try:
            return part.name, self._make(part)
        except Exception as error:  # returned: Ray would add to its message, and print pages
            error.add_note(traceback.format_exc())
            return error


def _check_record(folder: Path, settings: Mapping[str, Any]) -> None:
    """Compare a folder's record with the settings; write it where there is nothing yet."""
    record = folder / RECORD
    if not record.exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise PartsError(f"{folder} holds other things, no {RECORD}: name another folder")
        write_whole(record, (json.dumps(settings, indent=2) + "\n").encode())
        return
    try:
        before = json.loads(record.read_text())
    except ValueError as error:
        raise PartsError(f"{record} is damaged ({error}): remove {folder}, or name another --out") from None
    if changed := differences(before, dict(settings)):
        listed = "\n".join(f"  {name}: {was!r} -> {now!r}" for name, (was, now) in changed.items())
        raise PartsError(
            f"{folder} was begun with other settings:\n{listed}\n"
            "Pass the former ones, name another --out, or remove the folder"
        )


def _write(folder: Path, name: str, files: Files) -> None:
    """Write a part such that it is there as a whole or not at all, whatever is switched off meanwhile."""
    with appearing(folder / name) as partial:
        partial.mkdir()
        for file, content in files.items():
            (partial / file).write_bytes(content)
