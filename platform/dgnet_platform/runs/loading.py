"""Trained networks from wherever they are: our checkpoints, the authors' release, a release teacher."""

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgnet_core.dgnet import config as presets
from dgnet_core.dgnet import release
from dgnet_core.dgnet.state import TrainState
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.networks import Teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.runs.checkpoint import META, CheckpointError, load_networks, measure, read_meta

Tensors = dict[tuple[str, str], Tensor]
"""A release checkpoint's tensors by file ("gen", "dis", "id", "teacher") and name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """DG-Net as somebody trained it."""

    state: TrainState
    network: NetworkConfig
    """Sizes of the networks and of the pictures they were trained on."""
    source: str
    """What it is, for people: file, iteration, number of identities."""
    dataset: str | None
    """Data set it was trained on; None: unknown."""
    fingerprint: str | None
    """Of that data set's store; None: unknown."""


def open_trained(path: Path, device: torch.device | str = "cpu") -> Trained:
    """Networks of a checkpoint, or of a folder with the authors' `gen_*.pt`, `dis_*.pt` and `id_*.pt`.

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
    state, meta = load_networks(path, device)
    if not isinstance(state, TrainState):
        raise CheckpointError(f"{path} is a teacher's: name a checkpoint of DG-Net")
    source = f"{path.name}, iteration {meta.iteration:,}, {meta.config.num_classes:,} identities"
    return Trained(
        state=state,
        network=meta.config.network,
        source=source,
        dataset=meta.dataset,
        fingerprint=meta.fingerprint,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedTeacher:
    """The re-id baseline as somebody trained it; `dataset` and `fingerprint` as in `Trained`."""

    teacher: Teacher
    network: NetworkConfig
    dataset: str | None = None
    fingerprint: str | None = None


def open_teacher(path: Path, device: torch.device | str = "cpu") -> TrainedTeacher:
    """A teacher from a checkpoint of ours, or as the release saves it (`net_last.pth`).

    Raises:
        CheckpointError: it is missing, damaged, or no teacher.
    """
    if path.is_dir():
        state, meta = load_networks(path, device)
        if not isinstance(state, TeacherState):
            raise CheckpointError(f"{path} is a checkpoint of DG-Net: name a teacher's, made by jobs/train_teacher.py")
        teacher = state.teacher.requires_grad_(False)
        return TrainedTeacher(
            teacher=teacher, network=meta.config.network, dataset=meta.dataset, fingerprint=meta.fingerprint
        )
    try:
        tensors = _read({release.TEACHER: path})
        network = _appearance_sizes(tensors, "teacher", "head")
        teacher = Teacher(network, len(_tensor(tensors, "teacher.head.classifier.weight")))
        release.load_teacher(teacher, path)
    except (ValueError, FileNotFoundError) as error:
        raise _named(error, path) from error
    return TrainedTeacher(teacher=teacher.requires_grad_(False).to(device), network=network)


def digest_of(path: Path) -> str:
    """What tells one trained network from another: the digest of a checkpoint's tensors, or of the authors' files.

    Raises:
        CheckpointError: a checkpoint that is missing or damaged.
        OSError: a file that cannot be read.
    """
    if path.is_file():
        return measure(path)[1]
    if not (path / META).exists() and any(path.glob("id_*.pt")):
        files = _release_files(path, _release_iteration(path)).values()
        return hashlib.sha256("".join(measure(file)[1] for file in files).encode()).hexdigest()
    return read_meta(path).tensors_sha256


def _release_iteration(folder: Path) -> int:
    """The newest iteration in a release folder."""
    numbers = [int(match[1]) for path in folder.glob("id_*.pt") if (match := re.search(r"_(\d+)\.pt$", path.name))]
    return max(numbers, default=0)


def _release_files(folder: Path, iteration: int) -> dict[str, Path]:
    parts = (release.GENERATOR, release.DISCRIMINATOR, release.APPEARANCE)
    return {part: folder / f"{part}_{iteration:08d}.pt" for part in parts}


def _open_release(folder: Path, device: torch.device | str) -> Trained:
    """The newest networks of a release folder, of the sizes of their tensors; pictures are 256 x 128."""
    try:
        iteration = _release_iteration(folder)
        tensors = _read(_release_files(folder, iteration))
        network = _sizes(tensors)
        classes = len(_tensor(tensors, "appearance_encoder.prim.classifier.weight"))
        state = TrainState.build(presets.paper(classes, network=network), device, pretrained=False)
        release.load_networks(state, folder, iteration)
    except (ValueError, FileNotFoundError) as error:
        raise _named(error, folder) from error
    source = f"{folder.name} of the authors' release, iteration {iteration:,}, {classes:,} identities"
    return Trained(state=state, network=network, source=source, dataset=None, fingerprint=None)


def _read(files: Mapping[str, Path]) -> Tensors:
    tensors: Tensors = {}
    for part, path in files.items():
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # PyTorch meets foreign bytes with almost any exception
            raise CheckpointError(f"{path} is no PyTorch file of tensors: fetch it again ({error})") from error
        content = content.get("a", content) if isinstance(content, Mapping) else {}
        tensors |= {(part, name): value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors


def _tensor(tensors: Tensors, name: str) -> Tensor:
    """A tensor by our name of it."""
    part, theirs = release.release_name(name)
    if (part, theirs) not in tensors:
        raise CheckpointError(f"tensor {theirs!r} is missing from the {part} file: it is of another network")
    return tensors[part, theirs]


def _depth(tensors: Tensors, pattern: str) -> int:
    """How many of the tensors `pattern`.format(0), (1), ... there are."""
    return next(n for n in itertools.count() if release.release_name(pattern.format(n)) not in tensors)


def _appearance_sizes(tensors: Tensors, network: str, head: str) -> NetworkConfig:
    """Sizes of a ResNet and its head."""
    depths = [_depth(tensors, f"{network}.trunk.layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4)]
    return NetworkConfig(
        appearance_layers=(depths[0], depths[1], depths[2], depths[3]),
        appearance_width=len(_tensor(tensors, f"{network}.trunk.conv1.weight")),
        bottleneck=len(_tensor(tensors, f"{network}.{head}.reduce.weight")),
        pretrained="none",
    )


def _sizes(tensors: Tensors) -> NetworkConfig:
    """Sizes of all networks."""
    appearance = _appearance_sizes(tensors, "appearance_encoder", "prim")
    return NetworkConfig(
        appearance_layers=appearance.appearance_layers,
        appearance_width=appearance.appearance_width,
        bottleneck=appearance.bottleneck,
        pretrained="none",
        structure_width=len(_tensor(tensors, "structure_encoder.stem.0.conv.weight")),
        residual_blocks=_depth(tensors, "structure_encoder.blocks.{}.first.conv.weight"),
        adain_width=len(_tensor(tensors, "decoder.scales.0.0.weight")),
        discriminator_width=len(_tensor(tensors, "discriminator.scales.0.layers.0.conv.weight")),
        discriminator_scales=_depth(tensors, "discriminator.scales.{}.layers.0.conv.weight"),
    )


def _named(error: Exception, path: Path) -> CheckpointError:
    """The error as one that names the file."""
    text = str(error)
    return CheckpointError(text if str(path) in text else f"{path}: {text}")
