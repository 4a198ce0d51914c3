"""Reads and writes the checkpoints of the authors' public release, by the names of their tensors.

A release checkpoint is three files that hold `{"a": state_dict}` - `gen_*.pt` (structure encoder, decoder), `dis_*.pt`
(discriminator), `id_*.pt` (appearance encoder) - and a teacher's plain state dict, `net_last.pth`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgnet_core.dgnet.state import TrainState

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


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a release file."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a readable PyTorch file of tensors ({error})") from error
    if isinstance(content, Mapping) and isinstance(content.get("a"), Mapping):
        content = content["a"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a state dict, or one under the key 'a', as the release saves them")
    return content


def _load(networks: Mapping[str, nn.Module], files: Mapping[str, Path]) -> None:
    """Copy the tensors of `files` into `networks`; nothing is changed unless everything fits."""
    sources = {part: _tensors(path) for part, path in files.items()}
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


@torch.no_grad()
def load_networks(state: TrainState, folder: Path, iteration: int | None = None) -> None:
    """Load `gen_*.pt`, `dis_*.pt` and `id_*.pt` of a release output folder; optimisers stay as they are.

    Args:
        state: its networks receive the tensors.
        folder: where the three files are.
        iteration: the number in the files' names; None: the highest.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is unreadable, lacks a tensor, or was trained on another number of classes.
    """
    files: dict[str, Path] = {}
    for part in (GENERATOR, DISCRIMINATOR, APPEARANCE):
        found = {int(match[1]): p for p in folder.glob(f"{part}_*.pt") if (match := re.search(r"_(\d+)\.pt$", p.name))}
        number = max(found, default=None) if iteration is None else iteration
        if number is None or number not in found:
            wanted = f"{part}_*.pt" if iteration is None else f"{part}_{iteration:08d}.pt"
            raise FileNotFoundError(f"{folder}: no {wanted} of the release in this folder")
        files[part] = found[number]
    _load(state.networks, files)


@torch.no_grad()
def load_teacher(teacher: nn.Module, path: Path) -> None:
    """Load a release teacher, `net_last.pth`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unreadable, lacks a tensor, or was trained on another number of classes.
    """
    _load({"teacher": teacher}, {TEACHER: path})


def release_state_dicts(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Our tensors under the release's names, one state dict a file, with the release's unused tensors filled in."""
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


def save_networks(state: TrainState, folder: Path) -> None:
    """Write `gen_`, `dis_` and `id_*.pt` as the release does, named by the state's iteration."""
    for part, tensors in release_state_dicts(state.networks).items():
        torch.save({"a": tensors}, folder / f"{part}_{state.iteration:08d}.pt")
