"""A trained network as an MLflow model: encoded pictures in, descriptors out.

MLflow runs this file where the model is loaded. It needs the core and the decoding of pictures, neither Ray nor a
store.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from dgnet_core.generation.grids import placed
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.state import State
from dgnet_core.methods import METHODS, method_of
from dgnet_core.networks.modes import evaluating
from dgnet_core.ranking.extraction import BATCH_SIZE, extract
from dgnet_core.ranking.features import descriptor
from dgnet_platform.data.decode import PictureError, decode
from dgnet_platform.storage.serialize import from_dict, to_dict

NETWORK, WEIGHTS = "network.json", "weights.pt"
COLUMN = "image"
"""Column of the input that holds the pictures: bytes of JPEG, PNG, BMP or WebP files."""


class Descriptors(PythonModel):
    """Maps pictures to descriptors of unit length: their dot products are the similarities that evaluation ranks by."""

    def load_context(self, context: Any) -> None:
        """Build the network from the files that `export` wrote."""
        folder = Path(context.artifacts["network"])
        values = json.loads((folder / NETWORK).read_text())
        method = METHODS[values["method"]]
        config = from_dict(method.config, values["config"])
        self._size = config.network.height, config.network.width
        self._beta = list(method.features.values())[-1]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        state = method.build(config, device, pretrained=False)
        assert method.describe is not None
        self._network = method.describe(state).requires_grad_(False)
        self._network.load_state_dict(torch.load(folder / WEIGHTS, map_location=device, weights_only=True))

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
                pixels.append(torch.from_numpy(decode(picture).transpose(2, 0, 1)[None].copy()))
            except (PictureError, TypeError) as error:
                raise ValueError(f"row {row}, column {COLUMN!r}: {error}: send the bytes of an image file") from None
        same = all(picture.shape == pixels[0].shape for picture in pixels)
        groups = [torch.cat(pixels)] if same else pixels
        return np.concatenate([self._of(group) for group in groups])

    def _of(self, pixels: torch.Tensor) -> np.ndarray:
        unknown = torch.zeros(len(pixels), dtype=torch.int64)
        found = extract(self._network, pixels, unknown, unknown, height=self._size[0], width=self._size[1])
        # With sqrt(beta) on both sides, dot products weigh the fine half with beta, as evaluation does.
        vectors = descriptor(found.prim, found.fine, math.sqrt(self._beta))
        return torch.nn.functional.normalize(vectors).cpu().numpy()


def export(state: State, config: MethodConfig, folder: Path) -> ModelSignature:
    """Write what `Descriptors` needs of a trained network into a folder.

    Args:
        state: of a method that describes.
        config: its run's.
        folder: an empty one.

    Returns:
        What goes in and comes out.
    """
    method = method_of(config)
    assert method.describe is not None
    config = replace(config, step=replace(config.step, compile=False))
    (folder / NETWORK).write_text(json.dumps({"method": method.name, "config": to_dict(config)}, indent=2) + "\n")
    network = method.describe(state)
    torch.save(network.state_dict(), folder / WEIGHTS)
    with evaluating(network):
        grey = placed(torch.zeros(1, 3, config.network.height, config.network.width), network)
        width = sum(half.shape[1] for half in network.describe(grey))
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, COLUMN)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, width))]),
    )


set_model(Descriptors())
