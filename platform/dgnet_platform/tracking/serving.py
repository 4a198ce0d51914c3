"""A trained method as an MLflow model: encoded pictures in, descriptors out, or pictures of people.

MLflow runs this file where the model is loaded. It needs the core and the decoding of pictures, neither Ray nor a
store.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array
from PIL import Image
from torch import Tensor
from torch.export.passes import move_to_device_pass

from dgnet_core.generation.grids import to_pixels
from dgnet_core.learning.augment import normalise, resized
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.joints import JOINTS
from dgnet_core.learning.state import State
from dgnet_core.methods import METHODS, Method, described, method_of
from dgnet_core.networks.modes import evaluating
from dgnet_core.ranking.extraction import BATCH_SIZE
from dgnet_platform.compute.devices import own_device
from dgnet_platform.data.decode import PictureError, decode
from dgnet_platform.storage.serialize import from_dict, to_dict

NETWORK, WEIGHTS = "network.json", "weights.pt"
PROGRAM = "descriptors.pt2"
"""In place of both: a program of torch.export, and in `network.json` its height and width."""
COLUMN, TARGET, KEYPOINTS, SEED = "image", "target", "joints", "seed"
"""Columns. `image`, of the input and of drawn people: bytes of a JPEG, PNG, BMP or WebP file; drawn ones are PNG.
`target`: the same, of the picture whose structure is drawn. `joints`: 18 lists of x, y and visibility (see
dgnet_core/learning/joints.py), in pixels of a picture of the network's size. `seed`: of a person who does not exist."""
Answer = Callable[[pd.DataFrame], np.ndarray | pd.DataFrame]


class Served(PythonModel):
    """Descriptors of pictures or, of a method that describes no people, pictures of people.

    Descriptors have unit length: their dot products are the similarities that evaluation ranks by.
    """

    def load_context(self, context: Any) -> None:
        """Build the networks from the files that `export` wrote, or take the program that `export_program` wrote."""
        folder = Path(context.artifacts["network"])
        values = json.loads((folder / NETWORK).read_text())
        device = own_device()
        if (folder / PROGRAM).exists():
            program = move_to_device_pass(torch.export.load(folder / PROGRAM), device)
            self._answer = _describing(program.module(), values["height"], values["width"], device)
            return
        method = METHODS[values["method"]]
        config = from_dict(method.config, values["config"])
        state = method.build(config, device, pretrained=False)
        state.iteration = values["iteration"]
        saved = torch.load(folder / WEIGHTS, map_location=device, weights_only=True)
        if method.describe is None:
            state.load_networks(saved)
            self._answer = _drawing(state, config, device)
        else:
            network = described(state, config)
            network.network.load_state_dict(saved)
            self._answer = _describing(network, network.height, network.width, device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> np.ndarray | pd.DataFrame:  # noqa: ARG002 # pyright: ignore[reportIncompatibleMethodOverride]
        """What belongs to N rows: descriptors (N, D) float32, or pictures, in column `image`.

        Raises:
            ValueError: names the first row that cannot be used, and its column.
        """
        rows = len(model_input)
        parts = [self._answer(model_input.iloc[first : first + BATCH_SIZE]) for first in range(0, rows, BATCH_SIZE)]
        frames = [part for part in parts if isinstance(part, pd.DataFrame)]
        return pd.concat(frames) if frames else np.concatenate(parts)


def _describing(network: Callable[[Tensor], Tensor], height: int, width: int, device: torch.device) -> Answer:
    def describe(rows: pd.DataFrame) -> np.ndarray:
        pixels = [resized(picture, height, width).to(torch.uint8) for picture in _pictures(rows, COLUMN)]
        with torch.no_grad():
            return network(torch.cat(pixels).to(device)).cpu().numpy()

    return describe


def _drawing(state: State, config: MethodConfig, device: torch.device) -> Answer:
    method, size = method_of(config), config.network

    def images(rows: pd.DataFrame, column: str) -> Tensor:
        found = [normalise(picture, size.height, size.width) for picture in _pictures(rows, column)]
        return torch.cat(found).to(device)

    def draw(rows: pd.DataFrame) -> pd.DataFrame:
        if method.draw is not None:
            targets = _joints(rows).to(device) if method.posed else images(rows, TARGET)
            drawn = method.draw(state, config)(images(rows, COLUMN), targets)
        else:
            assert method.invent is not None
            invent = method.invent(state, config)
            drawn = torch.cat([invent(1, seed) for seed in rows[SEED].tolist()])
        pictures = to_pixels(drawn).permute(0, 2, 3, 1).contiguous().numpy()
        return pd.DataFrame({COLUMN: list(map(_png, pictures))}, index=rows.index)

    return draw


def _pictures(rows: pd.DataFrame, column: str) -> list[Tensor]:
    """Pictures (1, 3, h, w), uint8, of any sizes."""
    found = []
    for row, picture in zip(rows.index, rows[column].tolist(), strict=True):
        try:
            found.append(torch.from_numpy(decode(picture).transpose(2, 0, 1)[None].copy()))
        except (PictureError, TypeError) as error:
            raise ValueError(f"row {row}, column {column!r}: {error}: send the bytes of an image file") from None
    return found


def _joints(rows: pd.DataFrame) -> Tensor:
    """Joints (N, 18, 3)."""
    found = []
    for row, given in rows[KEYPOINTS].items():
        joints = np.array([list(joint) for joint in given], dtype=object)
        if joints.shape != (len(JOINTS), 3):
            raise ValueError(f"row {row}, column {KEYPOINTS!r}: send {len(JOINTS)} lists of x, y and visibility")
        found.append(torch.tensor(joints.astype(np.float32)))
    return torch.stack(found)


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def export(state: State, config: MethodConfig, folder: Path) -> tuple[ModelSignature, pd.DataFrame]:
    """Write what `Served` needs of a trained method into a folder.

    Args:
        state: the trained one's.
        config: its run's.
        folder: an empty one.

    Returns:
        What goes in and comes out, and an example of what goes in.
    """
    method = method_of(config)
    values = {"method": method.name, "iteration": state.iteration, "config": to_dict(config.portable())}
    (folder / NETWORK).write_text(json.dumps(values, indent=2) + "\n")
    if method.describe is None:
        torch.save(
            {"networks": {name: network.state_dict() for name, network in state.networks.items()}}, folder / WEIGHTS
        )
        return _of_drawing(method)
    network = described(state, config)
    torch.save(network.network.state_dict(), folder / WEIGHTS)
    blank = torch.zeros(1, 3, network.height, network.width, dtype=torch.uint8)
    with evaluating(network):
        return _of_describing(network(blank).shape[1])


def export_program(
    program: torch.export.ExportedProgram, height: int, width: int, folder: Path
) -> tuple[ModelSignature, pd.DataFrame]:
    """The same of a program that takes pictures (N, 3, height, width), uint8, and gives descriptors (N, D)."""
    (folder / NETWORK).write_text(json.dumps({"height": height, "width": width}) + "\n")
    torch.export.save(program, folder / PROGRAM)
    blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    return _of_describing(program.module()(blank).shape[1])


_PICTURE = _png(np.full((128, 64, 3), 128, np.uint8))


def _of_describing(values: int) -> tuple[ModelSignature, pd.DataFrame]:
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, COLUMN)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, values))]),
    )
    return signature, pd.DataFrame({COLUMN: [_PICTURE]})


def _of_drawing(method: Method[Any, Any]) -> tuple[ModelSignature, pd.DataFrame]:
    picture = ColSpec(DataType.binary, COLUMN)
    inputs: list[ColSpec | TensorSpec] = [picture]
    if method.draw is None:
        inputs = [ColSpec(DataType.long, SEED)]
        example = {SEED: [0]}
    elif method.posed:
        inputs.append(ColSpec(Array(Array(DataType.double)), KEYPOINTS))
        example = {COLUMN: [_PICTURE], KEYPOINTS: [np.zeros((len(JOINTS), 3)).tolist()]}
    else:
        inputs.append(ColSpec(DataType.binary, TARGET))
        example = {COLUMN: [_PICTURE], TARGET: [_PICTURE]}
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([picture])), pd.DataFrame(example)


set_model(Served())
