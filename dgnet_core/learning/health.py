"""Whether a run is well: the first loss or gradient that was not finite."""

import torch
from torch import Tensor

from dgnet_core.learning.state import State

WATCHED = ("L_", "D_", "grad_")
"""How the names of losses and gradient norms begin; a step returns them in the order in which it computes them."""


def record_fault(state: State, metrics: dict[str, Tensor], iteration: int | Tensor | None = None) -> None:
    """Remember the first iteration, and its first loss or gradient norm, that was not finite; raise at once on the CPU.

    The device keeps the number of the term. What numbers mean stays on the host, in `state.watched`: each new
    combination of names that an iteration returns gets the next free numbers.

    Args:
        state: keeps it.
        metrics: scalars that the iteration returned; those of other names than WATCHED may be anything.
        iteration: the state's; a tensor where a CUDA graph replays this.

    Raises:
        FloatingPointError: as `raise_fault` (CPU only).
    """
    names = tuple(name for name in metrics if name.startswith(WATCHED))
    number = state.watched.setdefault(names, sum(map(len, state.watched)))
    bad = ~torch.stack([metrics[name] for name in names]).isfinite()
    first = torch.empty_like(state.fault)
    first[0] = state.iteration if iteration is None else iteration
    first[1] = bad.int().argmax() + number
    state.fault.copy_(torch.where((state.fault[0] < 0) & bad.any(), first, state.fault))
    if state.device.type == "cpu":
        raise_fault(state)


def raise_fault(state: State) -> None:
    """Raise if any loss or gradient since the state was built was not finite. Waits for the device.

    Raises:
        FloatingPointError: names the iteration and the term.
    """
    iteration, number = state.fault.tolist()
    if iteration >= 0:
        term = [name for names in state.watched for name in names][number]
        raise FloatingPointError(
            f"iteration {iteration}: {term} is not finite; the weights of this run are spoilt from here on."
            " Go back to its last checkpoint, and lower the learning rates, set clip_norm or use float32"
        )
