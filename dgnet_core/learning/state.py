"""The state of a training run: networks, optimisers, memory, iteration - what a checkpoint holds."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
    averages: dict[str, nn.Module] = field(default_factory=dict)
    """Moving averages of some networks, by name, which describe people in their place; none where there is no EMA."""
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

    def describing(self, name: str) -> nn.Module:
        """The network of a name that describes people: its moving average where there is one."""
        return self.averages.get(name, self.networks[name])

    @torch.no_grad()
    def move_averages(self, decay: float) -> None:
        """Move the averages towards the networks: avg <- d avg + (1 - d) weights, running statistics included.

        d is `decay`, but 1 - 1 / t at first, so that up to iteration t = 1 / (1 - decay) the average is the mean of all
        iterations' weights (Tarvainen and Valpola, arXiv 1703.01780).
        """
        move = get_ema_multi_avg_fn(min(decay, 1 - 1 / (self.iteration + 1)))
        for name, average in self.averages.items():
            ours, theirs = (
                [*net.parameters(), *(buffer for buffer in net.buffers() if buffer.is_floating_point())]
                for net in (average, self.networks[name])
            )
            move(ours, theirs, None)
            for counter, other in zip(average.buffers(), self.networks[name].buffers(), strict=True):
                if not counter.is_floating_point():
                    counter.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers only, so `torch.load(weights_only=True)` reads it back."""
        saved = {
            "iteration": self.iteration,
            **self.memory,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }
        averages = {name: average.state_dict() for name, average in self.averages.items()}
        return saved | ({"averages": averages} if averages else {})

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned. Averages that it lacks start as the networks.

        Raises:
            ValueError: keys are missing or unknown, or tensors are of other shapes.
        """
        if set(saved) - {"averages"} != {"iteration", *self.memory, "networks", "optimizers"}:
            raise ValueError(f"not a training state of this method: its keys are {sorted(saved)}")
        try:
            self.load_networks(saved)
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, saved["optimizers"][name])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the training state is of another configuration: {error}") from error
        for name, tensor in self.memory.items():
            tensor.copy_(saved[name])
        self.iteration = saved["iteration"]

    def load_networks(self, saved: dict[str, Any]) -> None:
        """Take over networks and averages of what `state_dict` returned.

        Raises:
            KeyError, RuntimeError: they are of another configuration.
        """
        for name, network in self.networks.items():
            network.load_state_dict(saved["networks"][name])
        for name, average in self.averages.items():
            average.load_state_dict(saved.get("averages", saved["networks"])[name])


def average_of(network: nn.Module) -> nn.Module:
    """A copy of a network for `State.averages`."""
    return copy.deepcopy(network).requires_grad_(False)


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
