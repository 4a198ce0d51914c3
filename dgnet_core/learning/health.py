"""Whether a run is well: the first loss or gradient that was not finite, and surges of the identity loss."""

from typing import Protocol

import torch
from torch import Tensor

TERMS = (
    "D_adv", "D_penalty", "grad_discriminator", "L_adv", "L_c_id", "L_code1", "L_code2", "L_cyc", "L_img1", "L_img2",
    "L_prim", "L_fine", "L_s_id", "L_s_id_positive", "L_s_id_fine", "grad_generator", "grad_appearance",
    "L_id", "grad_teacher",
)  # fmt: skip
"""Losses and gradient norms in the order in which a step of DG-Net, or of the teacher, computes them."""


class Watched(Protocol):
    """The state of a run of either kind."""

    fault: Tensor
    """(2) int64: first iteration with a loss or gradient that was not finite, and which of TERMS; -1: none."""
    iteration: int
    """Iterations done."""

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        ...


def record_fault(state: Watched, metrics: dict[str, Tensor]) -> None:
    """Remember on the device the first iteration, and its first term, that was not finite; raise at once on the CPU."""
    zero = next(iter(metrics.values())).new_zeros(())
    bad = ~torch.stack([metrics.get(name, zero) for name in TERMS]).isfinite()
    first = torch.stack([torch.full_like(state.fault[0], state.iteration), bad.int().argmax()])
    state.fault = torch.where((state.fault[0] < 0) & bad.any(), first, state.fault)
    if state.device.type == "cpu":
        raise_fault(state)


def raise_fault(state: Watched) -> None:
    """Raise if any loss or gradient since the state was built was not finite. Waits for the device.

    Raises:
        FloatingPointError: names the iteration and the term.
    """
    iteration, term = state.fault.tolist()
    if iteration >= 0:
        raise FloatingPointError(
            f"iteration {iteration}: {TERMS[term]} is not finite; the weights of this run are spoilt from here on."
            " Go back to its last checkpoint, and lower the learning rates, set clip_norm or use float32"
        )
