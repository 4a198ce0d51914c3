"""Networks that describe people as files that other programs run: ONNX, and programs of torch.export.

A file takes pictures (N, 3, H, W), uint8, RGB, for any N, of the height and width that its metadata state, and gives
descriptors (N, D), float32, of unit length, whose dot products rank as evaluation does. Normalisation, the mirror image
and the weight of f_fine are inside.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dgnet_core.learning.augment import resized
from dgnet_platform.errors import UserError
from dgnet_platform.runs.checkpoint import CheckpointError
from dgnet_platform.runs.loading import TrainedNetworks, digest_of
from dgnet_platform.runs.provenance import code_version

INPUT, OUTPUT = "pixels", "descriptors"
"""Names of what goes into an ONNX file and comes out."""
METADATA = "metadata.json"
"""Extra file of a program."""
_REMEDY = "uv sync --extra export"


def metadata(trained: TrainedNetworks, path: Path) -> dict[str, str]:
    """What files say of the networks in them, which describe and are from `path`; each adds its own precision."""
    feature, beta = trained.method.best_feature(trained.config, trained.state.iteration)
    whole = path.resolve()
    return {
        "method": trained.method.title,
        "run": whole.parent.name,
        "checkpoint": whole.name,
        "source": trained.source,
        "weights": digest_of(path),
        "dataset": trained.dataset or "",
        "fingerprint": trained.fingerprint or "",
        "feature": feature,
        "beta": f"{beta:g}",
        "input": "pictures (N, 3, height, width), uint8, RGB",
        "height": str(trained.network.height),
        "width": str(trained.network.width),
        "version": code_version(),
    }


def write_program(program: torch.export.ExportedProgram, path: Path, about: Mapping[str, str]) -> None:
    """Write a program with its metadata; `torch.export.load` reads it, which runs code: it is for one's own files."""
    torch.export.save(program, path, extra_files={METADATA: json.dumps(about, indent=2)})


def write_onnx(program: torch.export.ExportedProgram, path: Path, about: Mapping[str, str]) -> None:
    """Write a program as an ONNX file with its metadata.

    Raises:
        UserError: a package is missing.
    """
    check_onnx()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of optional packages
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own calls
        program = program.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _stripes})
        written = torch.onnx.export(program, (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    assert written is not None
    written.model.metadata_props.update(about)
    for value in (*written.model.graph.inputs, *written.model.graph.outputs):
        assert value.shape is not None
        value.shape[0] = "pictures"
    written.save(path)


def _stripes(x: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool2d` for stripes of any heights, which ONNX has no operator for, and no places of the maxima."""
    parts, one = size
    assert one == 1
    rows = x.shape[2]
    stripes = [x[:, :, part * rows // parts : -(-(part + 1) * rows // parts)] for part in range(parts)]
    maxima = torch.cat([stripe.amax(dim=(2, 3), keepdim=True) for stripe in stripes], dim=2)
    return maxima, torch.zeros_like(maxima, dtype=torch.int64)


def check_onnx() -> None:
    """Raises UserError if what writes ONNX files is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--formats onnx: the package {error.name} is missing: run {_REMEDY}, or leave onnx out"
        ) from None


class ExportedNetwork(nn.Module):
    """An ONNX file of `write_onnx`, run by onnxruntime."""

    def __init__(self, path: Path, device: torch.device):
        """Open a file.

        Raises:
            CheckpointError: it is missing, damaged or of another program, or onnxruntime is missing.
        """
        super().__init__()
        if not path.is_file():
            raise CheckpointError(f"{path} is no file: name one that jobs/export.py wrote")
        try:
            import onnxruntime
        except ImportError:
            raise CheckpointError(f"{path}: the package onnxruntime is missing: run {_REMEDY}") from None
        providers = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        usable = [name for name in providers if name in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(path, providers=[*usable, "CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each kind of damage
            raise CheckpointError(f"{path} is no whole ONNX file ({error}): export it again") from None
        self.about: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        lacking = {"height", "width", "source", "method"} - self.about.keys()
        if lacking:
            raise CheckpointError(f"{path} has no metadata {', '.join(sorted(lacking))}: name a file of jobs/export.py")
        self.height, self.width = int(self.about["height"]), int(self.about["width"])
        self.dataset = self.about.get("dataset") or None
        self.fingerprint = self.about.get("fingerprint") or None
        self.source = f"{path.name}, of {self.about['source']}"

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors (N, D) of pictures (N, 3, h, w), uint8, on their device, and a fine half of width 0."""
        whole = resized(pixels, self.height, self.width).to(torch.uint8)
        (found,) = self._session.run([OUTPUT], {INPUT: whole.cpu().numpy()})
        descriptors = torch.from_numpy(found).to(pixels.device)
        return descriptors, descriptors[:, :0]
