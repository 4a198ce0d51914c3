"""Precision and memory format of the step's tensors."""

import torch
from torch import Tensor

from dgnet_core.learning.config import StepConfig


def dtype_of(step: StepConfig) -> torch.dtype:
    """What weights and images are kept in."""
    return torch.float64 if step.precision == "float64" else torch.float32


def layout_of(step: StepConfig) -> torch.memory_format:
    """How weights and images lie in memory."""
    return torch.channels_last if step.channels_last else torch.contiguous_format


def autocast(step: StepConfig, device: torch.device) -> torch.autocast:
    """The context in which networks run: bfloat16 where the precision is, else as they are. It can be entered again."""
    return torch.autocast(device.type, torch.bfloat16, enabled=step.precision == "bfloat16")


def exact(x: Tensor) -> Tensor:
    """x in float32 if autocast made it bfloat16: losses, codes and logits are computed in full precision."""
    return x.float() if x.dtype == torch.bfloat16 else x
