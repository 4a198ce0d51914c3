"""Layers that the compared generators share: one convolution, a residual block, a U-Net, a patch discriminator."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.networks.batch_norm import BatchNorm

GanNorm = Literal["none", "batch", "instance"]
Activation = Literal["none", "relu", "leaky"]


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    norm: GanNorm = "none",
    act: Activation = "relu",
    pad: int | None = None,
    reflect: bool = False,
    transposed: bool = False,
    bias: bool = True,
) -> nn.Sequential:
    """A convolution, its norm (instance norm has no weights), and ReLU or LeakyReLU 0.2.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the square kernel.
        stride: of the convolution; a transposed one enlarges by it.
        norm: after the convolution.
        act: after the norm.
        pad: pixels on every side; None: what keeps the size at stride 1, or makes it an exact multiple.
        reflect: pad by reflection instead of zeros.
        transposed: enlarge instead of shrinking; the size is exactly `stride` times as large.
        bias: whether the convolution has one.
    """
    layers: list[nn.Module] = []
    if transposed:
        pad = (kernel - stride + 1) // 2 if pad is None else pad
        extra = stride + 2 * pad - kernel
        layers.append(nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding=pad, output_padding=extra, bias=bias))
    else:
        pad = (kernel - 1) // 2 if pad is None else pad
        mode = "reflect" if reflect else "zeros"
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding=pad, padding_mode=mode, bias=bias))
    if norm != "none":
        layers.append(BatchNorm(outputs) if norm == "batch" else nn.InstanceNorm2d(outputs))
    if act != "none":
        layers.append(nn.ReLU() if act == "relu" else nn.LeakyReLU(0.2))
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """x plus `scale` times two 3x3 convolutions of x."""

    def __init__(
        self,
        channels: int,
        *,
        norm: GanNorm = "none",
        act: Activation = "relu",
        scale: float = 1.0,
        ends: Literal["inside", "outside", "never"] = "inside",
        bias: bool = True,
    ):
        """`ends`: where the last activation is: on the second convolution, after the sum, or nowhere."""
        super().__init__()
        last: Activation = act if ends == "inside" else "none"
        self.first = conv(channels, channels, 3, norm=norm, act=act, bias=bias)
        self.second = conv(channels, channels, 3, norm=norm, act=last, bias=bias)
        self.scale = scale
        self.rectified = ends == "outside"

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W)."""
        out = x + self.scale * self.second(self.first(x))
        return F.relu(out) if self.rectified else out


class UNet(nn.Module):
    """An encoder and a decoder of as many levels, each half as large as the one before, with skips between them (PG2).

    With a `code`, the levels are residual blocks of their width, and the deepest passes a vector of `code` values
    (PG2's G1). Without one, they are plain pairs of convolutions, and the first level has no skip (PG2's G2).
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        levels: int,
        *,
        code: int | None = None,
        bottom: tuple[int, int] | None = None,
    ):
        """Build.

        Args:
            inputs: channels of the input.
            width: channels of the first level; level i has i times as many.
            levels: how many.
            code: values that all structure passes through; None: no bottleneck.
            bottom: height and width of the deepest level; needed for a code.
        """
        super().__init__()
        widths = [width * (level + 1) for level in range(levels)]
        self.residual = code is not None
        self.stem = conv(inputs, width, 3)
        self.encoder, self.down, self.decoder, self.up = (nn.ModuleList() for _ in range(4))
        for level, here in enumerate(widths):
            above = widths[max(level - 1, 0)]
            self.encoder.append(
                Residual(here) if self.residual else nn.Sequential(conv(above, here, 3), conv(here, here, 3))
            )
            if level < levels - 1:
                self.down.append(conv(here, widths[level + 1] if self.residual else here, 3, 2, pad=1))
        if code is not None:
            assert bottom is not None
            self.bottom = bottom
            area = bottom[0] * bottom[1]
            self.squeeze = nn.Linear(area * widths[-1], code)
            self.widen = nn.Linear(code, area * width)
        arriving = width if self.residual else widths[-1]
        for level in reversed(range(levels)):
            joined = arriving + (widths[level] if self.residual or level else 0)
            if self.residual:
                self.decoder.append(Residual(joined))
                arriving = widths[level - 1]
                self.up.append(conv(joined, arriving, 1) if level else nn.Identity())
            else:
                self.decoder.append(nn.Sequential(conv(joined, width, 3), conv(width, width, 3)))
                arriving = width
                self.up.append(nn.Identity())
        self.last = nn.Conv2d(2 * width if self.residual else width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """An image (B, 3, H, W) without an activation, of x (B, inputs, H, W)."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x)
            skips.append(x)
            if level < len(self.down):
                x = self.down[level](x)
        if self.residual:
            x = self.widen(self.squeeze(x.flatten(1))).unflatten(1, (-1, *self.bottom))
        for block, up in zip(self.decoder, self.up, strict=True):
            skip = skips.pop()
            x = block(torch.cat([x, skip], dim=1) if self.residual or skips else x)
            if skips:
                x = up(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.last(x)


def patch_discriminator(inputs: int, width: int, *, norm: GanNorm, last_pad: int) -> nn.Sequential:
    """Scores (B, 1, h, w), one a patch: three halvings by 4x4 convolutions, then two of stride 1 (pix2pix).

    Args:
        inputs: channels.
        width: channels after the first convolution, which has no norm; then 2, 4 and 8 times as many.
        norm: of the others but the last.
        last_pad: padding of the two last convolutions.
    """
    return nn.Sequential(
        conv(inputs, width, 4, 2, act="leaky", pad=1),
        conv(width, 2 * width, 4, 2, norm=norm, act="leaky", pad=1, bias=norm != "batch"),
        conv(2 * width, 4 * width, 4, 2, norm=norm, act="leaky", pad=1, bias=norm != "batch"),
        conv(4 * width, 8 * width, 4, 1, norm=norm, act="leaky", pad=last_pad, bias=norm != "batch"),
        conv(8 * width, 1, 4, 1, act="none", pad=last_pad),
    )


@torch.no_grad()
def normal_(network: nn.Module, std: float = 0.02) -> None:
    """Normal weights of deviation `std` and zero biases in all convolutions and linear layers (DCGAN)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
