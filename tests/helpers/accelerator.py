"""An accelerator that this machine does not have: tensors that compute on the CPU, and refuse to meet the CPU's.

It finds what a test on the CPU cannot: a tensor that stays behind when others move, labels that move when they should
not, numbers read from a device without being fetched. Figures are the CPU's, bit for bit. What is about CUDA itself
(graphs, pinned memory, autocast's own casts) is for a GPU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.overrides
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only

DEVICE = torch.device("meta")
"""PyTorch's name of the accelerator: backward passes need one that it knows, without a driver."""
_INDEXING = torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_
_MOVING = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class There(Tensor):
    """A tensor on the accelerator."""

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        return Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, here: Tensor):
        self.here = here

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # as torch.save keeps a GPU's
        return self.here.__reduce_ex__(protocol)

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # by which Module.to knows to make new parameters
        return ["here"], None

    @staticmethod
    def __tensor_unflatten__(parts: Mapping[str, Tensor], *_: Any) -> "There":
        return There(parts["here"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Runs every operation where its tensors are."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(torch.overrides.TorchFunctionMode):
    """Mends what PyTorch does below its dispatcher, which would make tensors without any numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        on = args[0] if args and isinstance(args[0], There) else None
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is Tensor.new_tensor and on is not None and not kwargs.get("device"):
            return on.here.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func is Tensor.tolist and on is not None:
            return on.here.tolist()
        if func in (Tensor.numpy, Tensor.__array__) and on is not None:
            raise TypeError("a tensor on an accelerator is no array: fetch it with .cpu()")
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            args = args[0], index, *args[2:]
        return func(*args, **kwargs)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    assert all(isinstance(tensor, There) or tensor.device.type == "cpu" for tensor in tensors), func
    there = any(isinstance(tensor, There) for tensor in tensors)
    left = [tensor for tensor in tensors if tensor.dim() and not isinstance(tensor, There)]
    if there and left and func not in _MOVING and not _indexes(func, args, left):
        raise RuntimeError(f"{func}: tensors of shapes {[tuple(tensor.shape) for tensor in left]} are on the CPU")
    if func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], There)
    plain_args, plain_kwargs = tree_map_only(There, lambda tensor: tensor.here, (tuple(args), dict(kwargs)))
    if plain_kwargs.get("device") is not None:
        there = torch.device(plain_kwargs["device"]).type == DEVICE.type
        plain_kwargs["device"] = torch.device("cpu")
    found = func(*plain_args, **plain_kwargs)
    if not there:
        return found
    found = tree_map_only(Tensor, lambda tensor: tensor if isinstance(tensor, There) else There(tensor), found)
    return return_and_correct_aliasing(func, args, kwargs, found)


def _indexes(func: Any, args: Sequence[Any], left: Sequence[Tensor]) -> bool:
    """Whether the CPU's tensors are indices, which a device's tensor takes."""
    indices = func.overloadpacket in _INDEXING and isinstance(args[0], There) and args[1]
    return bool(indices) and all(any(tensor is index for index in indices) for tensor in left)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)


@contextmanager
def accelerator() -> Iterator[None]:
    """Meanwhile, DEVICE computes."""
    load: Callable[..., Any] = torch.load

    def loaded(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if torch.device(map_location or "cpu").type != DEVICE.type:
            return load(*args, map_location=map_location, **kwargs)
        return tree_map_only(Tensor, lambda tensor: tensor.to(DEVICE), load(*args, map_location="cpu", **kwargs))

    fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with (
        patch("torch.autocast", _Autocast),
        patch("torch.load", loaded),
        patch(fused, lambda: ["cpu", DEVICE.type]),
        _Functions(),
        _Operations(),
    ):
        yield


def fetched(tree: Any) -> Any:
    """The same tree with tensors of the CPU."""
    return tree_map_only(There, lambda tensor: tensor.here, tree)
