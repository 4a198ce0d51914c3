"""BatchNorm that knows several batches in one tensor, and one batch spread over several ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5

ReduceSums = Callable[[Tensor], object]
"""Replaces a tensor of sums, float64, by its sum over all ranks; every rank calls it at the same place."""

_reduce_sums: ContextVar[ReduceSums | None] = ContextVar("reduce_sums", default=None)


@contextmanager
def synchronised(reduce_sums: ReduceSums | None) -> Iterator[None]:
    """Within this context, BatchNorm's statistics are those of the batch of all ranks, forward and backward.

    A step then computes on any number of ranks what it computes on one, up to rounding. Each rank's loss must be the
    mean over its own images, and its gradients averaged with weights by numbers of images, as `ReduceGrads` does.

    Args:
        reduce_sums: called once a layer and pass in each direction; None: each rank's own statistics.
    """
    token = _reduce_sums.set(reduce_sums)
    try:
        yield
    finally:
        _reduce_sums.reset(token)


def is_synchronised() -> bool:
    """Whether BatchNorm's statistics are those of the batch of all ranks here."""
    return _reduce_sums.get() is not None


def gathered(x: Tensor, first: int, total: int) -> Tensor:
    """The rows (S, total, D) of all ranks, of which this rank's x (S, B, D) begin at `first`; within `synchronised`.

    Gradients go back to the rank that the rows are from, by the rule of `synchronised`.
    """
    reduce_sums = _reduce_sums.get()
    assert reduce_sums is not None
    padded = F.pad(x.double(), (0, 0, first, total - first - x.shape[1]))
    return _Sum.apply(padded, x.shape[1], reduce_sums).to(x.dtype)


class GroupedBatchNorm(nn.Module):
    """BatchNorm over a tensor that holds several batches one after the other.

    Merging batches into one pass saves work, yet each must be normalised by its own statistics, as separate passes
    would. Parameter and buffer names are those of `nn.BatchNorm2d`, so published weights load.
    """

    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, shift: bool = True):
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        if shift:
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, groups: int = 1, track: "bool | Seen" = False) -> Tensor:
        """Normalise x.

        Args:
            x: (groups * B, C) or (groups * B, C, H, W), batches one after the other.
            groups: how many batches x holds. In eval mode the running statistics serve for all.
            track: in training mode, also move the running statistics, once per batch and in order; a list gets what
                `move_running` needs to move those of many norms at once.
        """
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON)
        seen: Seen | None = track if isinstance(track, list) else [] if track else None
        reduce_sums = _reduce_sums.get()
        if reduce_sums is None and (groups == 1 or torch.compiler.is_compiling()):  # which fuses by itself
            mean, var = (None, None) if seen is None else (self.running_mean, self.running_var)
            if seen is not None:
                self.num_batches_tracked += groups
            chunks = [
                F.batch_norm(chunk, mean, var, self.weight, self.bias, True, self.momentum, EPSILON)
                for chunk in x.chunk(groups)
            ]
            return chunks[0] if groups == 1 else torch.cat(chunks)
        if reduce_sums is not None:
            y, mean, unbiased = _Synchronised.apply(x, self.weight, self.bias, groups, reduce_sums)
            inverse, correction = (unbiased + EPSILON).rsqrt(), 1.0
        else:
            y, mean, inverse = _Grouped.apply(x, self.weight, self.bias, groups)
            count = x.numel() // (groups * x.shape[1])
            correction = count / max(1, count - 1)
        if seen is not None:
            seen.append((self, mean, inverse, correction))
            if seen is not track:
                move_running(seen)
        return y


Seen = list[tuple[GroupedBatchNorm, Tensor, Tensor, float]]
"""Norms, the means and inverse deviations (groups, C) of the batches that they have normalised, and by what these
variances are multiplied to be unbiased."""


def move_running(seen: Seen) -> None:
    """Move the running statistics of norms, which have one momentum, by the batches that each has normalised."""
    if not seen:
        return
    norms, means, inverses, corrections = zip(*seen, strict=True)
    with torch.no_grad():
        variances = torch._foreach_pow(inverses, -2)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_sub_(variances, EPSILON)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(variances, corrections)  # pyright: ignore[reportPrivateImportUsage]
        moved = [*(norm.running_mean for norm in norms), *(norm.running_var for norm in norms)]
        batches = [value.to(old.dtype) for old, value in zip(moved, (*means, *variances), strict=True)]
        for group in range(len(means[0])):
            torch._foreach_lerp_(moved, [batch[group] for batch in batches], norms[0].momentum)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_([norm.num_batches_tracked for norm in norms], len(means[0]))  # pyright: ignore[reportPrivateImportUsage]


class _Grouped(torch.autograd.Function):
    """Batch norm of several batches: PyTorch's own operators, with fewer around them than its autograd needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(x) // groups
        images = x[..., None, None] if x.ndim == 2 else x
        if _is_tall(images, weight):
            C, pixels = images.shape[1], images.numel() // (groups * images.shape[1])
            y, mean, inverse = torch.native_group_norm(
                _tall(images, groups), weight, bias, groups, C, pixels, C, EPSILON
            )
            y = _flat(y, x)
        else:
            parts = (
                torch.native_batch_norm(part, weight, bias, None, None, True, 0.0, EPSILON) for part in x.split(batch)
            )
            y, mean, inverse = zip(*parts, strict=True)
            y, mean, inverse = torch.cat(y), torch.stack(mean), torch.stack(inverse)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, inverse)
        ctx.set_materialize_grads(False)
        return y, mean, inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        groups, needed = len(mean), ctx.needs_input_grad[:3]
        images, gradient = (v[..., None, None] if v.ndim == 2 else v for v in (x, gradients[0]))
        if _is_tall(images, weight) and weight.dtype == gradient.dtype:
            C, pixels = x.shape[1], x.numel() // (groups * x.shape[1])
            tall = (_tall(v.contiguous(memory_format=torch.channels_last), groups) for v in (gradient, images))
            of_x, of_scale, of_shift = torch.ops.aten.native_group_norm_backward(
                *tall, mean, inverse, weight, groups, C, pixels, C, needed
            )
            return None if of_x is None else _flat(of_x, x), of_scale, of_shift, None
        parts = zip(gradients[0].chunk(groups), x.chunk(groups), mean.unbind(), inverse.unbind(), strict=True)
        found = [
            torch.ops.aten.native_batch_norm_backward(
                gradient, part, weight, None, None, of_part, deviation, True, EPSILON, needed
            )
            for gradient, part, of_part, deviation in parts
        ]
        of_x, of_weight, of_bias = zip(*found, strict=True)
        affine: tuple[Tensor | None, Tensor | None] = (None, None)
        if needed[1]:
            wanted = [*of_weight, *of_bias] if needed[2] else of_weight  # a BNNeck has no bias to learn
            sums = torch.stack([*wanted]).unflatten(0, (-1, groups)).sum(dim=1)
            affine = sums[0], sums[1] if needed[2] else None
        return torch.cat(of_x) if needed[0] else None, *affine, None


def _is_tall(images: Tensor, weight: Tensor) -> bool:
    """Whether a batch is one tall image in memory, and BatchNorm the norm of each of its channels."""
    return images.dtype == weight.dtype and images.is_contiguous(memory_format=torch.channels_last)


def _tall(images: Tensor, groups: int) -> Tensor:
    """Images (groups * B, C, H, W), channels last, as one image of each batch (groups, C, B * H, W)."""
    N, C, H, W = images.shape
    tall = images.permute(0, 2, 3, 1).reshape(groups, N // groups * H, W, C).permute(0, 3, 1, 2)
    return tall if tall.is_cpu else tall.contiguous()  # elsewhere PyTorch's group norm refuses channels last


def _flat(tall: Tensor, like: Tensor) -> Tensor:
    """The images, or vectors, that `_tall` was given, in the shape of a tensor."""
    if like.ndim == 2:
        return tall.permute(0, 2, 3, 1).reshape(like.shape)
    N, C, H, W = like.shape
    return tall.permute(0, 2, 3, 1).reshape(N, H, W, C).permute(0, 3, 1, 2)


class BatchNorm(GroupedBatchNorm):
    """BatchNorm of one batch, whose running statistics move with every pass in training mode.

    Unlike GroupedBatchNorm's, its gradients over several ranks have gradients: gradient penalties need them.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise x (B, C) or (B, C, H, W)."""
        reduce_sums = _reduce_sums.get()
        if not self.training or reduce_sums is None:
            return super().forward(x, track=True)
        dims = [0, *range(2, x.ndim)]
        count = x.numel() // x.shape[1]
        values = x.double()
        sums = values.sum(dims)
        packed = torch.stack([sums, values.square().sum(dims), torch.full_like(sums, count)])
        packed = _Sum.apply(packed, count, reduce_sums)
        total = packed[2].detach()
        mean, square = packed[:2] / total
        var = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * (total / (total - 1))).to(self.running_var.dtype), self.momentum)
        wide = _wide(x)
        scale = self.weight * (var + EPSILON).rsqrt().to(wide.dtype)
        shift = self.bias - mean.to(wide.dtype) * scale
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over all ranks. Its gradient is `_Mean`: each rank descends from the mean over its own images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, reduce_sums: ReduceSums) -> Tensor:
        ctx.count, ctx.reduce_sums = count, reduce_sums
        total = x.clone()
        reduce_sums(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Mean.apply(gradients[0], ctx.count, ctx.reduce_sums), None, None


class _Mean(torch.autograd.Function):
    """Sum over all ranks, each weighted by its count and divided by this rank's. Its gradient is `_Sum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, reduce_sums: ReduceSums) -> Tensor:
        ctx.count, ctx.reduce_sums = count, reduce_sums
        total = x * count
        reduce_sums(total)
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(gradients[0], ctx.count, ctx.reduce_sums), None, None


class _Synchronised(torch.autograd.Function):
    """Batch norm by the statistics of all ranks: one collective forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, reduce_sums: ReduceSums
    ) -> tuple[Tensor, Tensor, Tensor]:
        grouped = _grouped(x, groups)
        local_var, local_mean = (s.double() for s in torch.var_mean(_wide(grouped), dim=(1, 3), correction=0))
        count = grouped.shape[1] * grouped.shape[3]
        # Sums of values and squares about 0 would lose digits in float32; in float64 they have them to spare.
        sums = torch.stack([local_mean, local_var + local_mean.square(), torch.ones_like(local_mean)]) * count
        reduce_sums(sums)
        total = sums[2]
        mean = sums[0] / total
        var = (sums[1] / total - mean.square()).clamp_(min=0)
        dtype = _wide(grouped).dtype
        inverse = (var + EPSILON).rsqrt().to(dtype)
        scale = weight * inverse
        shift = bias - mean.to(dtype) * scale
        y = torch.addcmul(_spread(shift), grouped, _spread(scale)).to(x.dtype)
        ctx.save_for_backward(x, weight, mean.to(dtype), inverse, total)
        ctx.groups, ctx.count, ctx.reduce_sums = groups, count, reduce_sums
        unbiased = var * (total / (total - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return y.reshape(x.shape), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, total = ctx.saved_tensors
        g = _wide(_grouped(gradients[0], ctx.groups))
        normal = (_wide(_grouped(x, ctx.groups)) - _spread(mean)) * _spread(inverse)
        of_bias, of_weight = g.sum(dim=(1, 3)), (g * normal).sum(dim=(1, 3))
        gradient = None
        if ctx.needs_input_grad[0]:
            # Each rank descends from the mean over its own images: weighted by their number, these are the gradients
            # of the mean over all, and divided by its own number, back to what this rank's loss calls one.
            sums = torch.stack([of_bias, of_weight]).double() * ctx.count
            ctx.reduce_sums(sums)
            g_mean, gx_mean = (sums / (total * ctx.count)).to(g.dtype)
            gradient = _spread(weight * inverse) * (g - _spread(g_mean) - normal * _spread(gx_mean))
            gradient = gradient.to(x.dtype).reshape(x.shape)
        return gradient, of_weight.sum(dim=0), of_bias.sum(dim=0), None, None


def _grouped(x: Tensor, groups: int) -> Tensor:
    """x (groups * B, C) or (groups * B, C, H, W) as (groups, B, C, pixels)."""
    return x.unflatten(0, (groups, -1)).flatten(3) if x.ndim == 4 else x.unflatten(0, (groups, -1)).unsqueeze(3)


def _spread(values: Tensor) -> Tensor:
    """Values (groups, C) beside a grouped tensor."""
    return values[:, None, :, None]


def _wide(x: Tensor) -> Tensor:
    """x in float32 if it is bfloat16: sums of many short numbers need more digits."""
    return x.float() if x.dtype == torch.bfloat16 else x
