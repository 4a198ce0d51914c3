"""Checkpoints: a training state as a directory that is whole and unchanged, or is refused.

`checkpoint_00001234/` holds `tensors.pt` (the state, read with `weights_only=True`) and `meta.json` (what it
is, with a digest of the tensors and one of itself). It is written beside, flushed to the disk and renamed,
so a crash leaves either the whole directory or none of that name.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.state import State
from dgnet_core.methods import METHODS, build, method_of
from dgnet_platform.errors import UserError
from dgnet_platform.runs.provenance import code_version
from dgnet_platform.runs.run import checkpoint_at
from dgnet_platform.storage.files import appearing
from dgnet_platform.storage.serialize import ConfigError, from_dict, to_dict

FORMAT = 2
"""Version of the layout; a change that older code would misread raises it."""
TENSORS, META = "tensors.pt", "meta.json"
STATISTICS = "statistics"
"""Key of the tensors beside those of the state."""

_NAME = re.compile(r"checkpoint_\d{8,}")
_log = logging.getLogger(__name__)
_digests: dict[tuple[int, ...], str] = {}
"""SHA-256 of files by what tells that they are the same and unchanged, wherever they were moved."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or foreign; the message names the file and the remedy."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint of another format, which is whole as far as this code can tell."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says of itself."""

    config: MethodConfig
    iteration: int
    """Iterations done."""
    dataset: str | None
    """Name of the data set it was trained on; None: unknown."""
    fingerprint: str | None
    """Of that data set's store; None: unknown."""
    world_size: int
    """Ranks that trained it."""
    metrics: Mapping[str, float | None]
    """Last known figures; None stands for one that was not finite."""
    code: str
    """Package version and, where there is one, the git commit; "dirty" with changes on top of it."""
    torch: str
    tensors_bytes: int
    tensors_sha256: str

    def to_json(self) -> str:
        """The content of `meta.json`."""
        values = {**asdict(self), "format": FORMAT, "kind": method_of(self.config).name, "config": to_dict(self.config)}
        return json.dumps({**values, "digest": _digest(values)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Self:
        """Read what `to_json` wrote; `path` is named in errors."""
        damaged = f"{path} is damaged or no checkpoint's: use another checkpoint"
        try:
            values = json.loads(text)
            found, digest = values.pop("format"), values.pop("digest")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{damaged} ({error!r})") from None
        if found != FORMAT:
            raise CheckpointFormatError(
                f"{path} is of format {found!r}, this code reads {FORMAT}: use the version that wrote it"
            )
        if digest != _digest({**values, "format": found}):
            raise CheckpointError(f"{damaged} (its digest does not fit)")
        try:
            kind = METHODS[values.pop("kind")].config
            return cls(**{**values, "config": from_dict(kind, values["config"])})
        except (ConfigError, KeyError, TypeError) as error:
            remedy = f"it was written by {values.get('code')}, read it with that version"
            raise CheckpointError(f"{path} holds a configuration this code does not know ({error}): {remedy}") from None


def save(
    state: State,
    config: MethodConfig,
    folder: Path,
    *,
    dataset: str | None = None,
    fingerprint: str | None = None,
    world_size: int = 1,
    metrics: Mapping[str, float] | None = None,
    statistics: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Path:
    """Write `folder/checkpoint_<iteration>`; one of the same iteration is replaced.

    Args:
        state: what to save, from any device.
        config: the run's.
        folder: of the run's checkpoints; made if need be.
        dataset: name of the training data.
        fingerprint: of the training data's store.
        world_size: ranks that trained it.
        metrics: figures to find the best checkpoint by.
        statistics: BatchNorm's by network and buffer, as the state was evaluated with, where they are not its own.
            Who evaluates or serves the networks gets them; a run that resumes never sees them.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: it could not be written; what was there before still is.
    """
    path = checkpoint_at(folder, state.iteration)
    with appearing(path) as partial:
        partial.mkdir()
        try:
            with (partial / TENSORS).open("wb") as file:
                torch.save(state.state_dict() | ({STATISTICS: statistics} if statistics else {}), file)
        except RuntimeError as error:  # how PyTorch reports a full disk
            raise OSError(f"{partial / TENSORS} could not be written ({error}): is the disk full?") from error
        size, digest = size_and_digest(partial / TENSORS)
        meta = Meta(
            config=config,
            iteration=state.iteration,
            dataset=dataset,
            fingerprint=fingerprint,
            world_size=world_size,
            metrics={k: float(v) if math.isfinite(v) else None for k, v in (metrics or {}).items()},
            code=code_version(),
            torch=torch.__version__,
            tensors_bytes=size,
            tensors_sha256=digest,
        )
        (partial / META).write_text(meta.to_json())
    return path


def read_meta(path: Path) -> Meta:
    """What a checkpoint says of itself, and that its tensors are all there by their size.

    Raises:
        CheckpointError: it is missing, truncated, damaged, foreign or of another format.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: name the directory of a checkpoint")
    try:
        text = (path / META).read_text()
        size = (path / TENSORS).stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        lost = Path(error.filename).name
        raise CheckpointError(f"{path} is no whole checkpoint, it has no {lost}: use another checkpoint") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path / META} is damaged, it is no text: use another checkpoint") from None
    meta = Meta.from_json(text, path / META)
    if size != meta.tensors_bytes:
        raise CheckpointError(
            f"{path / TENSORS} has {size:,} bytes, {meta.tensors_bytes:,} were written: copy it again, or use"
            " another checkpoint"
        )
    return meta


def verify(path: Path) -> Meta:
    """As `read_meta`, and that the tensors are those that were written, by their digest."""
    meta = read_meta(path)
    if size_and_digest(path / TENSORS)[1] != meta.tensors_sha256:
        raise CheckpointError(
            f"{path / TENSORS} was changed after it was written: copy it again, or use another checkpoint"
        )
    return meta


def load(path: Path, state: State) -> Meta:
    """Continue from a checkpoint: networks, optimisers and iteration into `state`.

    Raises:
        CheckpointError: the checkpoint is refused, or is of another configuration than the state.
    """
    meta = verify(path)
    saved = _read(path, state.device)
    saved.pop(STATISTICS, None)
    try:
        state.load_state_dict(saved)
    except ValueError as error:
        raise CheckpointError(f"{path / TENSORS}: {error}: build the state from its meta.json's config") from error
    return meta


def load_networks(path: Path, device: torch.device | str = "cpu") -> tuple[State, Meta]:
    """A checkpoint's networks to evaluate or draw with, built from its configuration; optimisers are new.

    Raises:
        CheckpointError: the checkpoint is refused.
    """
    meta = verify(path)
    state = build(meta.config.portable(), device, pretrained=False)
    saved = _read(path, device)
    try:
        state.load_networks(saved)
        for name, statistics in saved.get(STATISTICS, {}).items():
            network = state.describing(name)
            network.load_state_dict(network.state_dict() | statistics)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path / TENSORS} does not fit its meta.json's config: {error}") from error
    state.iteration = meta.iteration
    return state, meta


def newest(folder: Path, *, set_aside: bool = True) -> Path | None:
    """The newest whole checkpoint of a run, or None.

    Args:
        folder: the run's.
        set_aside: rename damaged ones that are met to `damaged_...`, and log them; False: look, but touch nothing.

    Raises:
        CheckpointFormatError: the newest is of another format: going on from an older one would lose it.
        OSError: a checkpoint cannot be read at all, which says nothing about its content.
    """
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except CheckpointFormatError:
            raise
        except CheckpointError as error:
            if not set_aside:
                continue
            aside = path.with_name(path.name.replace("checkpoint", "damaged", 1))
            while aside.exists():
                aside = aside.with_name(aside.name + "_")
            path.rename(aside)
            _log.warning("%s. Set aside as %s; the checkpoint before it is used.", error, aside.name)
            continue
        return path
    return None


def prune(folder: Path, *, keep_last: int, keep_best: str | None = None) -> list[Path]:
    """Remove all but the newest checkpoints and the best one; damaged ones stay for `newest` to find.

    Args:
        folder: of the run's checkpoints.
        keep_last: how many of the newest stay, at least 1.
        keep_best: the checkpoint with the largest value of this metric stays too, the newer one of equals.

    Returns:
        What was removed, oldest first.
    """
    metas: dict[Path, Meta] = {}
    for path in checkpoints(folder):
        try:
            metas[path] = read_meta(path)
        except CheckpointError:
            continue
    kept = set(list(metas)[-keep_last:])
    if keep_best is not None:
        rated = [(value, path) for path, meta in metas.items() if (value := meta.metrics.get(keep_best)) is not None]
        kept |= {path for _, path in sorted(rated)[-1:]}
    removed = [path for path in metas if path not in kept]
    for path in removed:
        _remove(path)
    return removed


def checkpoints(folder: Path) -> list[Path]:
    """Directories named as checkpoints, oldest iteration first."""
    found = (path for path in folder.glob("checkpoint_*") if _NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: iteration_of(path.name))


def iteration_of(name: str) -> int:
    """Iterations done at the checkpoint of a name or path."""
    return int(name.rpartition("_")[2])


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        return torch.load(path / TENSORS, map_location=device, weights_only=True)
    except Exception as error:  # PyTorch meets foreign bytes with almost any exception
        raise CheckpointError(f"{path / TENSORS} is no file of tensors ({error}): use another checkpoint") from error


def _remove(path: Path) -> None:
    """Remove a directory such that no half of it is ever taken for a checkpoint."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def size_and_digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file; one that did not change since is read once a process."""
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        key = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
        if key not in _digests:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return stat.st_size, _digests[key]
