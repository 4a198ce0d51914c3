"""Pictures in, descriptors out: all that ranking computes of a picture as one network, to be exported or served."""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.extraction import extract_batch
from dgnet_core.ranking.features import descriptor


class Described(nn.Module):
    """A network with what surrounds it: normalisation, the mirror image, lengths, and the weight of f_fine."""

    def __init__(self, network: DescriptorNetwork, *, height: int, width: int, beta: float):
        """A network in eval mode.

        Args:
            network: it is used as it is, not copied.
            height: of its images, in pixels.
            width: the same.
            beta: weight of f_fine, finite.
        """
        super().__init__()
        self.network = network.eval()
        self.height, self.width, self.beta = height, width, beta

    def forward(self, pixels: Tensor) -> Tensor:
        """Descriptors (N, D), float32, of pictures (N, 3, H, W), uint8; pictures of another size are resized.

        They have unit length, and their dot products order a gallery as f_prim . f_prim' + beta f_fine . f_fine' does
        (section 4.1 of the paper): sqrt(beta) is on both sides.
        """
        prim, fine = extract_batch(self.network, pixels, height=self.height, width=self.width)
        return nn.functional.normalize(descriptor(prim, fine, math.sqrt(self.beta)))


def program_of(described: Described, *, half: bool) -> torch.export.ExportedProgram:
    """A network as a program for batches of any number of pictures (N, 3, H, W) of its own size.

    Args:
        described: on the CPU; it stays as it is.
        half: the ResNet in float16, weights and arithmetic; heads, lengths and descriptors stay float32.
    """
    described = deepcopy(described).requires_grad_(False)
    for tensor in (*described.parameters(), *described.buffers()):
        tensor.data = tensor.data.contiguous()  # torch.export.save takes channels last for incomplete
    if half:
        described.network.get_submodule("trunk").half()
    pixels = torch.zeros(2, 3, described.height, described.width, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(described, (pixels,), dynamic_shapes=({0: torch.export.Dim("pictures")},))
