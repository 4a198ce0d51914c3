"""The FID network, from a file that the user brings: features that the Frechet and kernel distances compare.

It is Inception v3 as TensorFlow published it on 2015-12-05, with 1,008 classes. torchvision's `Inception3` has the same
layers, but for three differences: the average pools do not count the padding, the pool branch of the last block is a
max pool, and there is no auxiliary head. torchvision's own weights are of another training: figures with them are no
FID. The file is torch-fidelity's (`weights-inception-2015-12-05-6726825d.pth`) or pytorch-fid's
(`pt_inception-2015-12-05-6726825d.pth`), which hold the same tensors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mode = Literal["table2", "clean", "legacy_pytorch"]
"""How pictures become the network's input, see `inception_input`."""
FEATURES, CLASSES, SIDE = 2048, 1008, 299
"""Length of a feature, classes of the last layer, and height and width of the input in pixels."""
TABLE_2 = 256, 128
"""Height and width that the paper's pictures had before its Table 2 resized them for the network."""

_WANTED = (
    "the FID network's file is needed: weights-inception-2015-12-05-6726825d.pth of torch-fidelity, or "
    "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
)


# ------------------------------------------------------------------------------------------------------------
# The network


class InceptionFID(nn.Module):
    """Inception v3 of FID, up to its pooled features; named as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _BlockA(192, 32), _BlockA(256, 64), _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = _BlockC(768, 128), _BlockC(768, 160), _BlockC(768, 160)
        self.Mixed_6e = _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b, self.Mixed_7c = _BlockE(1280, _average_pool), _BlockE(2048, _max_pool)
        self.fc = nn.Linear(FEATURES, CLASSES)
        """Not used: a file without it is of another network."""

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 2048) of inputs (N, 3, 299, 299), float32, as `inception_input` makes them."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


class _Conv(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: Any = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _same(inputs: int, outputs: int, kernel: int | tuple[int, int]) -> _Conv:
    """A convolution that keeps height and width."""
    return _Conv(inputs, outputs, kernel, padding="same")


def _average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _BlockA(nn.Module):
    def __init__(self, inputs: int, pool: int):
        super().__init__()
        self.branch1x1 = _same(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _same(inputs, 48, 1), _same(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _same(inputs, 64, 1), _same(64, 96, 3)
        self.branch3x3dbl_3 = _same(96, 96, 3)
        self.branch_pool = _same(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average_pool(x))], dim=1)


class _BlockB(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _same(inputs, 64, 1), _same(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], dim=1)


class _BlockC(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branch1x1 = _same(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = _same(inputs, width, 1), _same(width, width, (1, 7))
        self.branch7x7_3 = _same(width, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _same(inputs, width, 1), _same(width, width, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _same(width, width, (1, 7)), _same(width, width, (7, 1))
        self.branch7x7dbl_5 = _same(width, 192, (1, 7))
        self.branch_pool = _same(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average_pool(x))], dim=1)


class _BlockD(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _same(inputs, 192, 1), _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = _same(inputs, 192, 1), _same(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = _same(192, 192, (7, 1)), _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], dim=1)


class _BlockE(nn.Module):
    def __init__(self, inputs: int, pool: Callable[[Tensor], Tensor]):
        super().__init__()
        self._pool = pool
        self.branch1x1 = _same(inputs, 320, 1)
        self.branch3x3_1 = _same(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _same(384, 384, (1, 3)), _same(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _same(inputs, 448, 1), _same(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _same(384, 384, (1, 3)), _same(384, 384, (3, 1))
        self.branch_pool = _same(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = (
            self.branch1x1(x),
            self.branch3x3_2a(single), self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double),
            self.branch_pool(self._pool(x)),
        )  # fmt: skip
        return torch.cat(branches, dim=1)


# ------------------------------------------------------------------------------------------------------------
# Its file


def read_inception(path: Path | str) -> InceptionFID:
    """The FID network with the weights of a file, in eval mode and without gradients.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of another network, damaged or no file of tensors; the message says what it is.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; {_WANTED}")
    try:
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch meets foreign bytes with almost any exception
        kind = "a TorchScript program, whose code is not run here" if "TorchScript" in str(error) else "damaged or none"
        raise ValueError(f"{path} is no PyTorch file of tensors ({kind}): {_WANTED}") from error
    # A constructor fills weights from random numbers, which takes seconds and would move the caller's sequence.
    with torch.device("meta"):
        network = InceptionFID()
    wanted = network.state_dict()
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, no tensors by name: {_WANTED}")
    found = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    for name in wanted:
        if name.endswith("num_batches_tracked"):  # files of old PyTorch versions lack this counter
            found.setdefault(name, torch.tensor(0))
    if difference := _difference(found, wanted):
        raise ValueError(f"{path} is {difference}: {_WANTED}")
    network.load_state_dict({name: found[name] for name in wanted}, assign=True)
    return network.eval().requires_grad_(False)


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """What a file is that does not hold the FID network; empty: it does."""
    if any(name.startswith("AuxLogits.") for name in found) and "fc.weight" in found:
        return (
            f"torchvision's Inception3 for {len(found['fc.weight']):,} classes, of another training than FID's network"
        )
    if "layer1.0.conv1.weight" in found:
        return "torchvision's ResNet, which is for --resnet"
    missing = [name for name in wanted if name not in found]
    if missing:
        first = [name for name in found if not name.endswith("num_batches_tracked")][:2]
        return (
            f"of another network (its first tensors are {', '.join(first) or 'none'}; {len(missing)} of {len(wanted)}"
            f" are missing, such as {missing[0]})"
        )
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            return f"of another network ({name} is {tuple(found[name].shape)}, {tuple(value.shape)} is needed)"
        if not found[name].isfinite().all():
            return f"damaged ({name} holds NaN or infinity)"
    return ""


# ------------------------------------------------------------------------------------------------------------
# Its input


def inception_input(pixels: Tensor, mode: Mode) -> Tensor:
    """Pictures as the FID network takes them.

    Args:
        pixels: (N, 3, h, w), uint8.
        mode: `table2`, the paper's: bicubic to 256 x 128 and rounded to uint8, as its pictures were, then the resize
            inside TensorFlow's graph, bilinear with corners that are not aligned. `clean` (Parmar et al., CVPR 2022):
            bicubic on floats, not rounded. `legacy_pytorch`, pytorch-fid's: PyTorch's bilinear resize without
            antialiasing, and values from -1 to 1.

    Returns:
        (N, 3, 299, 299), float32.
    """
    if mode == "legacy_pytorch":
        x = F.interpolate(pixels.float() / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return 2 * x - 1
    if mode == "clean":
        x = F.interpolate(pixels.float(), (SIDE, SIDE), mode="bicubic", antialias=True).clamp_(0, 255)
    else:
        # On uint8 both passes round, as Pillow's do; only the CPU has this kernel.
        x = F.interpolate(pixels.cpu(), TABLE_2, mode="bicubic", antialias=True).to(pixels.device)
        x = tensorflow_resize(x.float(), SIDE, SIDE)
    return (x - 128) / 128


def tensorflow_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize as in TensorFlow 1: output pixel i lies at i * h / height of the input, edges are repeated."""
    for dim, size in ((2, height), (3, width)):
        old = x.shape[dim]
        place = torch.arange(size, device=x.device, dtype=torch.float32) * (old / size)
        low = place.long()
        share = (place - low).view(-1, *[1] * (3 - dim))
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_(max=old - 1)), share)
    return x
