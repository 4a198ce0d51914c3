"""A trained network as an MLflow model: encoded pictures in, descriptors out.

MLflow runs this file where the model is loaded. It needs the core and the decoding of pictures, neither Ray nor a
store.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.networks import AppearanceEncoder
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.ranking.extraction import BATCH_SIZE, extract
from dgnet_core.ranking.features import descriptor
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher
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
        config = from_dict(NetworkConfig, values["network"])
        self._size = config.height, config.width
        self._beta = float(values["beta"])
        kind = {"dgnet": AppearanceEncoder, "teacher": Teacher}[values["kind"]]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = kind(config, values["num_classes"]).to(device).requires_grad_(False)
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


def export(
    network: AppearanceEncoder | Teacher, config: DGNetConfig | TeacherConfig, folder: Path, beta: float
) -> ModelSignature:
    """Write what `Descriptors` needs of a trained network into a folder.

    Args:
        network: the appearance encoder, or the baseline.
        config: its run's.
        folder: an empty one.
        beta: weight of f_fine; the baseline has none.

    Returns:
        What goes in and comes out.
    """
    is_teacher = isinstance(network, Teacher)
    values = {
        "kind": "teacher" if is_teacher else "dgnet",
        "network": to_dict(config.network),
        "num_classes": config.num_classes,
        "beta": 0.0 if is_teacher else beta,
    }
    (folder / NETWORK).write_text(json.dumps(values, indent=2) + "\n")
    torch.save(network.state_dict(), folder / WEIGHTS)
    width = config.network.bottleneck * (1 if is_teacher else 2)
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, COLUMN)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, width))]),
    )


set_model(Descriptors())
