"""Trained networks from wherever they are: our checkpoints, the authors' release, a release teacher."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgnet_core.dgnet import release
from dgnet_core.learning.augment import normalise
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.state import State
from dgnet_core.methods import Draw, Invent, Method, method_of, needs_joints
from dgnet_core.networks.config import ImageSize
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.data.poses import KeyPoints
from dgnet_platform.data.store import Store
from dgnet_platform.runs.checkpoint import META, CheckpointError, load_networks, read_meta, size_and_digest, verify

_NO_TEACHER = "{} is a checkpoint of a generator: name a teacher's, made by jobs/train_teacher.py"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetworks:
    """Networks of any method as they were trained."""

    state: State
    config: MethodConfig
    source: str
    """What it is, for people: file, iteration, number of identities."""
    dataset: str | None
    """Data set it was trained on; None: unknown."""
    fingerprint: str | None
    """Of that data set's store; None: unknown."""

    @property
    def method(self) -> Method[Any, Any]:
        """The method's row in the table."""
        return method_of(self.config)

    @property
    def network(self) -> ImageSize:
        """Sizes of the networks and of the images they were trained on."""
        return self.config.network

    @property
    def draw(self) -> Draw:
        """What draws people who exist; only of methods that do."""
        assert self.method.draw is not None
        return self.method.draw(self.state, self.config)

    @property
    def invent(self) -> Invent:
        """What draws people from noise; only of methods that do."""
        assert self.method.invent is not None
        return self.method.invent(self.state, self.config)

    def images(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures (3, h, w), uint8, of any sizes as normalised images (N, 3, H, W) of the networks' size."""
        size = self.network.height, self.network.width
        return torch.cat([normalise(torch.from_numpy(picture.copy())[None], *size) for picture in pictures])

    def joints(self, store: Store, split: str, index: pd.DataFrame) -> Tensor | None:
        """Joints (N, 18, 3) of rows of a split in pixels of the networks' images; None: the method is not posed.

        Raises:
            PoseError: the store has no key points.
        """
        if not self.method.posed:
            return None
        size = {"height": self.network.height, "width": self.network.width}
        return torch.from_numpy(KeyPoints.open(store).joints(split, index, **size))


def open_trained(path: Path, device: torch.device | str = "cpu") -> TrainedNetworks:
    """Networks that draw: of a checkpoint, or a folder with the authors' `gen_*.pt`, `dis_*.pt` and `id_*.pt`.

    Raises:
        CheckpointError: it is neither, or damaged.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}: name a checkpoint's directory, or a folder of the authors' release")
    if not (path / META).exists():
        if any(path.glob("id_*.pt")):
            return _open_release(path, device)
        inside = sorted(path.glob(f"checkpoint_*/{META}"))
        hint = f"it holds checkpoints, name one such as {inside[-1].parent}" if inside else "name another"
        raise CheckpointError(f"{path} holds no checkpoint, neither {META} nor the release's id_*.pt: {hint}")
    trained = _open_checkpoint(path, device)
    if not trained.method.generates:
        raise CheckpointError(f"{path} is a {trained.method.name}'s: name a checkpoint of DG-Net or another generator")
    return trained


def open_teacher(path: Path, device: torch.device | str = "cpu") -> TrainedNetworks:
    """A teacher from a checkpoint of ours, or as the release saves it (`net_last.pth`).

    Raises:
        CheckpointError: it is missing, damaged, or no teacher.
    """
    if path.is_dir():
        trained = _open_checkpoint(path, device)
        if not isinstance(trained.state, TeacherState):
            raise CheckpointError(_NO_TEACHER.format(path))
        trained.state.teacher.requires_grad_(False)
        return trained
    try:
        state, config = release.open_teacher(path)
    except (ValueError, FileNotFoundError) as error:
        raise _named(error, path) from error
    state.teacher.requires_grad_(False).to(device)
    return TrainedNetworks(state=state, config=config, source=path.name, dataset=None, fingerprint=None)


def open_describing(path: Path) -> TrainedNetworks:
    """Networks that describe people: a checkpoint of any method that does, the authors' release, or their teacher.

    Raises:
        CheckpointError: it is none of these, or damaged.
    """
    teacher = path.is_file() or ((path / META).exists() and isinstance(read_meta(path).config, TeacherConfig))
    trained = open_teacher(path) if teacher else open_trained(path)
    if trained.method.describe is None:
        raise CheckpointError(
            f"{path}: {trained.method.title} describes no people: name a checkpoint of DG-Net, FD-GAN or a teacher"
        )
    return trained


def load_teacher(path: Path, device: torch.device | str = "cpu") -> Teacher:
    """The network of `open_teacher`."""
    return cast(TeacherState, open_teacher(path, device).state).describing_teacher


def describe_teacher(path: Path) -> tuple[str, int]:
    """A teacher's digest and number of identities. A checkpoint of ours is verified, but its networks are not loaded.

    Raises:
        CheckpointError: it is missing, damaged, or no teacher.
    """
    if not path.is_dir():
        return digest_of(path), open_teacher(path).config.num_classes
    meta = verify(path)
    if not isinstance(meta.config, TeacherConfig):
        raise CheckpointError(_NO_TEACHER.format(path))
    return meta.tensors_sha256, meta.config.num_classes


def digest_of(path: Path) -> str:
    """What tells one trained network from another: the digest of a checkpoint's tensors, or of the authors' files.

    Raises:
        CheckpointError: a checkpoint that is missing or damaged.
        OSError: a file that cannot be read.
    """
    if path.is_file():
        return size_and_digest(path)[1]
    if not (path / META).exists() and any(path.glob("id_*.pt")):
        files = release.release_files(path).values()
        return hashlib.sha256("".join(size_and_digest(file)[1] for file in files).encode()).hexdigest()
    return read_meta(path).tensors_sha256


def keypoints_of(store: Store, config: MethodConfig) -> str | None:
    """Digest of a store's key points; None: the run needs none.

    Raises:
        PoseError: the run needs them, and the store has none.
    """
    return KeyPoints.open(store).digest if needs_joints(config) else None


def _open_checkpoint(path: Path, device: torch.device | str) -> TrainedNetworks:
    state, meta = load_networks(path, device)
    source = f"{path.name}, iteration {meta.iteration:,}, {meta.config.num_classes:,} identities"
    return TrainedNetworks(
        state=state, config=meta.config, source=source, dataset=meta.dataset, fingerprint=meta.fingerprint
    )


def _open_release(folder: Path, device: torch.device | str) -> TrainedNetworks:
    """The newest networks of a release folder, of the sizes of their tensors; images are 256 x 128."""
    try:
        state, config = release.open_release(folder, device)
    except (ValueError, FileNotFoundError) as error:
        raise _named(error, folder) from error
    what = f"iteration {state.iteration:,}, {config.num_classes:,} identities"
    source = f"{folder.name} of the authors' release, {what}"
    return TrainedNetworks(state=state, config=config, source=source, dataset=None, fingerprint=None)


def _named(error: Exception, path: Path) -> CheckpointError:
    """The error as one that names the file."""
    text = str(error)
    return CheckpointError(text if str(path) in text else f"{path}: {text}")
