"""The state of a training run: networks, optimisers, memory, iteration - what a checkpoint holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.steps import ReduceGrads, clip, load_optimizer, to_device


@dataclass(kw_only=True, eq=False)
class State:
    """Everything that changes from one iteration to the next, of any method."""

    networks: dict[str, nn.Module]
    """The trained networks by name."""
    optimizers: dict[str, torch.optim.Optimizer]
    """The optimisers by name."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What else an iteration hands to the next, by name: floating point, averaged over ranks after each iteration."""
    fault: Tensor
    """(2) int64: first iteration with a loss or gradient that was not finite, and which (see health); -1: none."""
    watched: dict[tuple[str, ...], int] = field(default_factory=dict)
    """What `fault` counts (see health): the names that iterations returned, and the number of the first of them."""
    iteration: int = 0
    """Iterations done."""

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.fault.device

    def take_step(self, name: str, reduce_grads: ReduceGrads, *, optimizer: str | None = None) -> Tensor:
        """Step along the gradients that have arrived at a network, with the optimiser of its name or another one.

        Returns:
            The gradients' L2 norm.
        """
        parameters = list(self.networks[name].parameters())
        reduce_grads(parameters)
        gradient = clip(parameters, None)
        self.optimizers[optimizer or name].step()
        return gradient

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers only, so `torch.load(weights_only=True)` reads it back."""
        return {
            "iteration": self.iteration,
            **self.memory,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: keys are missing or unknown, or tensors are of other shapes.
        """
        if set(saved) != {"iteration", *self.memory, "networks", "optimizers"}:
            raise ValueError(f"not a training state of this method: its keys are {sorted(saved)}")
        try:
            for name, network in self.networks.items():
                network.load_state_dict(saved["networks"][name])
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, saved["optimizers"][name])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the training state is of another configuration: {error}") from error
        for name, tensor in self.memory.items():
            tensor.copy_(saved[name])
        self.iteration = saved["iteration"]


def no_fault(device: torch.device | str) -> Tensor:
    """The `fault` of a state that has none yet."""
    return torch.full((2,), -1, device=device)


def with_adams(
    networks: Callable[[], dict[str, nn.Module]],
    config: MethodConfig,
    device: torch.device | str,
    *,
    lr: float,
    betas: tuple[float, float],
    factors: Mapping[str, float] | None = None,
) -> State:
    """The state before iteration 0 of networks that have an Adam each, of their own name.

    Args:
        networks: makes them; their weights are a function of the configuration's seed.
        config: the run's.
        device: where they live.
        lr: Adam's rate.
        betas: Adam's.
        factors: of the rate, for networks that learn faster than others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made = networks()
    for network in made.values():
        to_device(network, config.step, device)
    factors = factors or {}
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Adam(
            [{"params": network.parameters(), "factor": factors.get(name, 1.0)}], lr=lr, betas=betas, fused=True
        )
        for name, network in made.items()
    }
    return State(networks=made, optimizers=optimizers, fault=no_fault(device))
