"""A trained network as an MLflow model: encoded pictures in, descriptors out.

MLflow runs this file where the model is loaded. It needs the core and the decoding of pictures, neither Ray nor a
store.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from torch.export.passes import move_to_device_pass

from dgnet_core.learning.augment import resized
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.state import State
from dgnet_core.methods import METHODS, described, method_of
from dgnet_core.networks.modes import evaluating
from dgnet_core.ranking.extraction import BATCH_SIZE
from dgnet_platform.data.decode import PictureError, decode
from dgnet_platform.storage.serialize import from_dict, to_dict

NETWORK, WEIGHTS = "network.json", "weights.pt"
PROGRAM = "descriptors.pt2"
"""In place of both: a program of torch.export, and in `network.json` its height and width."""
COLUMN = "image"
"""Column of the input that holds the pictures: bytes of JPEG, PNG, BMP or WebP files."""


class Descriptors(PythonModel):
    """Maps pictures to descriptors of unit length: their dot products are the similarities that evaluation ranks by."""

    def load_context(self, context: Any) -> None:
        """Build the network from the files that `export` wrote, or take the program that `export_program` wrote."""
        folder = Path(context.artifacts["network"])
        values = json.loads((folder / NETWORK).read_text())
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if (folder / PROGRAM).exists():
            program = torch.export.load(folder / PROGRAM)
            self._network = move_to_device_pass(program, self._device).module()
            self._size = values["height"], values["width"]
            return
        method = METHODS[values["method"]]
        config = from_dict(method.config, values["config"])
        state = method.build(config, self._device, pretrained=False)
        state.iteration = values["iteration"]
        network = described(state, config)
        network.network.load_state_dict(torch.load(folder / WEIGHTS, map_location=self._device, weights_only=True))
        self._network, self._size = network, (network.height, network.width)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> np.ndarray:  # noqa: ARG002 # pyright: ignore[reportIncompatibleMethodOverride]
        """Descriptors (N, D) float32 of the N pictures in column `image`.

        Raises:
            ValueError: names the first row that is no picture.
        """
        parts = [
            self._describe(model_input[COLUMN].iloc[first : first + BATCH_SIZE])
            for first in range(0, len(model_input), BATCH_SIZE)
        ]
        return np.concatenate(parts)

    def _describe(self, pictures: pd.Series) -> np.ndarray:
        pixels = []
        for row, picture in pictures.items():
            try:
                decoded = torch.from_numpy(decode(picture).transpose(2, 0, 1)[None].copy())
            except (PictureError, TypeError) as error:
                raise ValueError(f"row {row}, column {COLUMN!r}: {error}: send the bytes of an image file") from None
            pixels.append(resized(decoded, *self._size).to(torch.uint8))
        with torch.no_grad():
            return self._network(torch.cat(pixels).to(self._device)).cpu().numpy()


def export(state: State, config: MethodConfig, folder: Path) -> ModelSignature:
    """Write what `Descriptors` needs of a trained network into a folder.

    Args:
        state: of a method that describes.
        config: its run's.
        folder: an empty one.

    Returns:
        What goes in and comes out.
    """
    values = {
        "method": method_of(config).name, "iteration": state.iteration, "config": to_dict(config.portable()),
    }  # fmt: skip
    (folder / NETWORK).write_text(json.dumps(values, indent=2) + "\n")
    network = described(state, config)
    torch.save(network.network.state_dict(), folder / WEIGHTS)
    blank = torch.zeros(1, 3, network.height, network.width, dtype=torch.uint8)
    with evaluating(network):
        return _signature(network(blank).shape[1])


def export_program(program: torch.export.ExportedProgram, height: int, width: int, folder: Path) -> ModelSignature:
    """The same of a program that takes pictures (N, 3, height, width), uint8, and gives descriptors (N, D)."""
    (folder / NETWORK).write_text(json.dumps({"height": height, "width": width}) + "\n")
    torch.export.save(program, folder / PROGRAM)
    blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    return _signature(program.module()(blank).shape[1])


def _signature(values: int) -> ModelSignature:
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, COLUMN)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, values))]),
    )


set_model(Descriptors())
