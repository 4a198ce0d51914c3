"""Reads and writes the checkpoints of the authors' public release, by the names of their tensors.

A release checkpoint is three files that hold `{"a": state_dict}` - `gen_*.pt` (structure encoder, decoder), `dis_*.pt`
(discriminator), `id_*.pt` (appearance encoder) - and a teacher's plain state dict, `net_last.pth`.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgnet_core.dgnet.config import DGNetConfig, paper
from dgnet_core.dgnet.state import TrainState
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import GeM, Head
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.state import TeacherState

Sources = Mapping[str, Mapping[str, Tensor]]
"""Tensors by the file of a release ("gen", "dis", "id", "teacher") and their names in it."""

GENERATOR, DISCRIMINATOR, APPEARANCE, TEACHER = "gen", "dis", "id", "teacher"

# Our tensor names (network first) as patterns, and the release's file and tensor name for each.
_HEAD = ((r"reduce\.", "add_block.0."), (r"norm\.", "add_block.1."), (r"classifier\.", "classifier.0."))
_RULES: list[tuple[str, str, str]] = [
    (r"structure_encoder\.stem\.(\d+)\.", GENERATOR, r"enc_content.model.\1."),
    (r"structure_encoder\.blocks\.(\d+)\.first\.", GENERATOR, r"enc_content.model.4.model.\1.model.0."),
    (r"structure_encoder\.blocks\.(\d+)\.second\.", GENERATOR, r"enc_content.model.4.model.\1.model.1."),
    (r"structure_encoder\.point\.", GENERATOR, r"enc_content.model.5.conv1."),
    (r"structure_encoder\.dilated\.0\.", GENERATOR, r"enc_content.model.5.conv6."),
    (r"structure_encoder\.dilated\.1\.", GENERATOR, r"enc_content.model.5.conv12."),
    (r"structure_encoder\.dilated\.2\.", GENERATOR, r"enc_content.model.5.conv18."),
    (r"structure_encoder\.fuse\.", GENERATOR, r"enc_content.model.5.fuse."),
    (r"decoder\.blocks\.(\d+)\.first\.", GENERATOR, r"dec.model.1.model.\1.model.0."),
    (r"decoder\.blocks\.(\d+)\.second\.", GENERATOR, r"dec.model.1.model.\1.model.1."),
    (r"decoder\.up1\.", GENERATOR, r"dec.model.3."),
    (r"decoder\.up2\.", GENERATOR, r"dec.model.5."),
    *[(rf"decoder\.refine\.{i}\.", GENERATOR, rf"dec.model.{6 + i}.") for i in range(3)],
    *[
        (rf"decoder\.{ours}\.{part}\.{2 * layer}\.", GENERATOR, rf"mlp_{theirs}{part + 1}.model.{layer}.fc.")
        for ours, theirs in (("scales", "w"), ("biases", "b"))
        for part in range(4)
        for layer in range(3)
    ],
    (r"discriminator\.scales\.(\d+)\.layers\.(\d+)\.first\.", DISCRIMINATOR, r"cnns.\1.\2.model.0."),
    (r"discriminator\.scales\.(\d+)\.layers\.(\d+)\.second\.", DISCRIMINATOR, r"cnns.\1.\2.model.1."),
    (r"discriminator\.scales\.(\d+)\.layers\.(\d+)\.", DISCRIMINATOR, r"cnns.\1.\2."),
    (r"appearance_encoder\.trunk\.", APPEARANCE, "model."),
    *[(rf"appearance_encoder\.prim\.{ours}", APPEARANCE, f"classifier1.{theirs}") for ours, theirs in _HEAD],
    *[(rf"appearance_encoder\.fine\.{ours}", APPEARANCE, f"classifier2.{theirs}") for ours, theirs in _HEAD],
    (r"teacher\.trunk\.", TEACHER, "model."),
    *[(rf"teacher\.head\.{ours}", TEACHER, f"classifier.{theirs}") for ours, theirs in _HEAD],
]

# Tensors of the release that take no part in DG-Net: the ImageNet classifier, and statistics that AdaIN never reads.
_UNUSED = re.compile(r"model\.fc\.(weight|bias)|dec\.model\..*\.norm\.running_(mean|var)")


def release_name(name: str) -> tuple[str, str]:
    """The release's file ("gen", "dis", "id" or "teacher") and tensor name for one of ours, network first.

    Raises:
        KeyError: no network of ours has such a tensor.
    """
    for pattern, part, replacement in _RULES:
        match = re.match(pattern, name)
        if match:
            return part, match.expand(replacement) + name[match.end() :]
    raise KeyError(name)


def _read(files: Mapping[str, Path]) -> Sources:
    """The tensors in the files of a release."""
    return {part: _tensors(path) for part, path in files.items()}


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a release file."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no PyTorch file of tensors: fetch it again ({error})") from error
    if isinstance(content, Mapping) and isinstance(content.get("a"), Mapping):
        content = content["a"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a state dict, or one under the key 'a', as the release saves them")
    return content


def _check_sizes(networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks of which the release has no such layers."""
    for network, module in networks.items():
        for name, part in module.named_modules():
            if isinstance(part, GeM) or (isinstance(part, Head) and part.neck != "release"):
                raise ValueError(
                    f"{network}.{name}: the authors' release has no GeM and no BNNeck: it takes networks with"
                    " network.pooling and network.neck 'release'"
                )


@torch.no_grad()
def _load(networks: Mapping[str, nn.Module], files: Mapping[str, Path], sources: Sources) -> None:
    """Copy the tensors of `files` into `networks`; nothing is changed unless everything fits."""
    _check_sizes(networks)
    wanted = {part: set() for part in files}
    copies: list[tuple[Tensor, Tensor]] = []
    for network, module in networks.items():
        for name, ours in module.state_dict().items():
            part, theirs = release_name(f"{network}.{name}")
            wanted[part].add(theirs)
            if theirs not in sources[part]:
                if theirs.endswith("num_batches_tracked"):
                    continue  # absent from files of old PyTorch versions
                raise ValueError(f"{files[part]}: tensor {theirs!r} is missing; is it a file of another network?")
            value = sources[part][theirs]
            if value.shape != ours.shape:
                what = f"{files[part]}: tensor {theirs!r} has shape {tuple(value.shape)}, not {tuple(ours.shape)}"
                if "classifier.0" in theirs:
                    what += f": it was trained on {len(value)} classes, set num_classes = {len(value)}"
                raise ValueError(what)
            copies.append((ours, value))
    for part, source in sources.items():
        unknown = sorted(name for name in source if name not in wanted[part] and not _UNUSED.fullmatch(name))
        if unknown:
            raise ValueError(f"{files[part]}: unknown tensor {unknown[0]!r} ({len(unknown)} in all)")
    for ours, value in copies:
        ours.copy_(value)


def release_files(folder: Path, iteration: int | None = None) -> dict[str, Path]:
    """The three files of a release output folder.

    Args:
        folder: where they are.
        iteration: the number in the files' names; None: the highest that an `id_*.pt` has.

    Raises:
        FileNotFoundError: a file is missing.
    """
    if iteration is None:
        numbers = [re.search(r"_(\d+)\.pt$", path.name) for path in folder.glob(f"{APPEARANCE}_*.pt")]
        iteration = max((int(number[1]) for number in numbers if number), default=None)
        if iteration is None:
            raise FileNotFoundError(f"{folder}: no {APPEARANCE}_*.pt of the release in this folder")
    files = {part: folder / f"{part}_{iteration:08d}.pt" for part in (GENERATOR, DISCRIMINATOR, APPEARANCE)}
    for file in files.values():
        if not file.exists():
            raise FileNotFoundError(f"{folder}: no {file.name} of the release in this folder")
    return files


def load_release(state: TrainState, folder: Path, iteration: int | None = None) -> None:
    """Load `gen_*.pt`, `dis_*.pt` and `id_*.pt` of a release output folder; optimisers stay as they are.

    Args:
        state: its networks receive the tensors.
        folder: where the three files are.
        iteration: as `release_files`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is unreadable, lacks a tensor, or was trained on another number of classes; or the networks
            have a GeM or a BNNeck.
    """
    files = release_files(folder, iteration)
    _load(state.networks, files, _read(files))


def open_release(folder: Path, device: torch.device | str = "cpu") -> tuple[TrainState, DGNetConfig]:
    """The newest networks of a release output folder, and a configuration of their sizes for images of 256 x 128.

    Raises:
        FileNotFoundError, ValueError: as `load_release`.
    """
    files = release_files(folder)
    sources = _read(files)
    classes = len(_tensor(sources, "appearance_encoder.prim.classifier.weight"))
    config = paper(classes, network=_sizes(sources))
    state = TrainState.build(config, device, pretrained=False)
    _load(state.networks, files, sources)
    state.iteration = int(files[APPEARANCE].stem.rpartition("_")[2])
    return state, config


def open_teacher(path: Path) -> tuple[TeacherState, TeacherConfig]:
    """A release teacher, `net_last.pth`, and a configuration of its sizes for images of 256 x 128.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unreadable, or lacks a tensor.
    """
    files = {TEACHER: path}
    sources = _read(files)
    classes = len(_tensor(sources, "teacher.head.classifier.weight"))
    config = TeacherConfig(num_classes=classes, network=_descriptor_sizes(sources, "teacher", "head"))
    state = TeacherState.build(config, pretrained=False)
    _load(state.networks, files, sources)
    return state, config


def _tensor(sources: Sources, name: str) -> Tensor:
    """A tensor by our name of it."""
    part, theirs = release_name(name)
    if theirs not in sources[part]:
        raise ValueError(f"tensor {theirs!r} is missing from the {part} file: it is of another network")
    return sources[part][theirs]


def _depth(sources: Sources, pattern: str) -> int:
    """How many of the tensors `pattern`.format(0), (1), ... there are."""
    names = (release_name(pattern.format(number)) for number in itertools.count())
    return next(number for number, (part, theirs) in enumerate(names) if theirs not in sources[part])


def _descriptor_sizes(sources: Sources, network: str, head: str) -> NetworkConfig:
    """Sizes of a ResNet and its head."""
    depths = [_depth(sources, f"{network}.trunk.layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4)]
    return NetworkConfig(
        appearance_layers=(depths[0], depths[1], depths[2], depths[3]),
        appearance_width=len(_tensor(sources, f"{network}.trunk.conv1.weight")),
        bottleneck=len(_tensor(sources, f"{network}.{head}.reduce.weight")),
        pretrained="none",
    )


def _sizes(sources: Sources) -> NetworkConfig:
    """Sizes of all networks of DG-Net."""
    appearance = _descriptor_sizes(sources, "appearance_encoder", "prim")
    return NetworkConfig(
        appearance_layers=appearance.appearance_layers,
        appearance_width=appearance.appearance_width,
        bottleneck=appearance.bottleneck,
        pretrained="none",
        structure_width=len(_tensor(sources, "structure_encoder.stem.0.conv.weight")),
        residual_blocks=_depth(sources, "structure_encoder.blocks.{}.first.conv.weight"),
        adain_width=len(_tensor(sources, "decoder.scales.0.0.weight")),
        discriminator_width=len(_tensor(sources, "discriminator.scales.0.layers.0.conv.weight")),
        discriminator_scales=_depth(sources, "discriminator.scales.{}.layers.0.conv.weight"),
    )


def release_state_dicts(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Our tensors under the release's names, one state dict a file, with the release's unused tensors filled in.

    Raises:
        ValueError: networks with GeM or a BNNeck, which the release has not.
    """
    _check_sizes(networks)
    parts: dict[str, dict[str, Tensor]] = {}
    for network, module in networks.items():
        for name, value in module.state_dict().items():
            part, theirs = release_name(f"{network}.{name}")
            parts.setdefault(part, {})[theirs] = value.detach().cpu()
            adain = re.fullmatch(r"(dec\.model\.1\..*)\.conv\.bias", theirs)
            if adain:
                parts[part][f"{adain[1]}.norm.running_mean"] = torch.zeros(len(value))
                parts[part][f"{adain[1]}.norm.running_var"] = torch.ones(len(value))
    if APPEARANCE in parts:
        channels = parts[APPEARANCE]["classifier1.add_block.0.weight"].shape[1]
        parts[APPEARANCE] |= {"model.fc.weight": torch.zeros(1000, channels), "model.fc.bias": torch.zeros(1000)}
    return parts


def save_release(state: TrainState, folder: Path) -> None:
    """Write `gen_`, `dis_` and `id_*.pt` as the release does, named by the state's iteration; averages where there are.

    Raises:
        ValueError: as `release_state_dicts`.
    """
    networks = {name: state.describing(name) for name in state.networks}
    for part, tensors in release_state_dicts(networks).items():
        torch.save({"a": tensors}, folder / f"{part}_{state.iteration:08d}.pt")
