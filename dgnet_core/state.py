"""The state of a training run: networks, optimisers, iteration - what a checkpoint holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from dgnet_core.appearance import AppearanceEncoder
from dgnet_core.config import DGNetConfig, StepConfig
from dgnet_core.decoder import Decoder
from dgnet_core.discriminator import Discriminator
from dgnet_core.pretrained import load_imagenet
from dgnet_core.structure import StructureEncoder
from dgnet_core.teacher import Teacher


def dtype_of(step: StepConfig) -> torch.dtype:
    """What weights and images are kept in."""
    return torch.float64 if step.precision == "float64" else torch.float32


def layout_of(step: StepConfig) -> torch.memory_format:
    """How weights and images lie in memory."""
    return torch.channels_last if step.channels_last else torch.contiguous_format


def place(network: nn.Module, step: StepConfig, device: torch.device | str) -> None:
    """Put a network on the device, in the precision and memory format of the step, and compile it if asked to."""
    network.to(device, dtype_of(step)).to(memory_format=layout_of(step))
    if step.compile:
        # The step descends twice through one pass of the appearance encoder, which donated buffers forbid.
        functorch_config.donated_buffer = False
        network.compile()


def trunk_and_heads(
    trunk: nn.Module, heads: Iterable[nn.Module], *, lr: float, head_lr_factor: float, momentum: float,
    weight_decay: float,
) -> torch.optim.SGD:  # fmt: skip
    """Nesterov SGD with rate `lr` on a re-id trunk and `head_lr_factor` times as much on its heads."""
    head_parameters = [parameter for head in heads for parameter in head.parameters()]
    return torch.optim.SGD(
        [
            {"params": trunk.parameters(), "factor": 1.0},
            {"params": head_parameters, "factor": head_lr_factor, "lr": head_lr_factor * lr},
        ],
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        fused=True,
    )


@dataclass
class TrainState:
    """Everything that changes from one iteration to the next, and the frozen teacher beside it."""

    appearance_encoder: AppearanceEncoder
    structure_encoder: StructureEncoder
    decoder: Decoder
    discriminator: Discriminator
    teacher: Teacher | None
    """Labels generated images for L_prim; not part of the checkpoint, for it never changes."""
    appearance_optimizer: torch.optim.SGD
    generator_optimizer: torch.optim.Adam
    """Structure encoder and decoder."""
    discriminator_optimizer: torch.optim.Adam
    identity_level: Tensor
    """(2) fast and slow running mean of the identity loss on real images; NaN before the first iteration."""
    fault: Tensor
    """(2) int64: first iteration with a loss or gradient that was not finite, and which (see health); -1: none."""
    iteration: int = 0
    """Iterations done."""

    @classmethod
    def build(
        cls,
        config: DGNetConfig,
        device: torch.device | str = "cpu",
        *,
        teacher: Teacher | None = None,
        pretrained: bool = True,
    ) -> Self:
        """The state before iteration 0: a pure function of the configuration.

        Args:
            config: the run.
            device: where the networks live.
            teacher: trained on the same identities; may be None for recipes that need none.
            pretrained: load what `config.network.pretrained` names, or the teacher's trunk if `trunk_from_teacher`;
                False when a checkpoint will be loaded anyway.

        Raises:
            ValueError: the teacher knows another number of identities, or its trunk is asked for and missing or of
                other sizes.
            FileNotFoundError, RuntimeError: the ImageNet weights are not to be had (see load_imagenet).
        """
        if teacher is not None and teacher.head.classifier.out_features != config.num_classes:
            raise ValueError(
                f"the teacher knows {teacher.head.classifier.out_features} identities, the training set has"
                f" {config.num_classes}: train the teacher on the same training set"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = config.network
            networks: list[nn.Module] = [
                AppearanceEncoder(network, config.num_classes),
                StructureEncoder(network),
                Decoder(network),
                Discriminator(network),
            ]
        if pretrained and not config.trunk_from_teacher:
            load_imagenet(networks[0].get_submodule("trunk"), network)
        if teacher is not None:
            teacher.requires_grad_(False).train()
        for net in [*networks, teacher] if teacher is not None else networks:
            place(net, config.step, device)
        appearance, structure, decoder, discriminator = networks
        if pretrained and config.trunk_from_teacher:
            _load_trunk(appearance.get_submodule("trunk"), teacher)
        optim = config.optim
        adam: dict[str, Any] = {"betas": optim.adam_betas, "weight_decay": optim.weight_decay, "fused": True}
        return cls(
            *networks,  # pyright: ignore[reportArgumentType]
            teacher=teacher,
            appearance_optimizer=trunk_and_heads(
                appearance.get_submodule("trunk"),
                [appearance.get_submodule("prim"), appearance.get_submodule("fine")],
                lr=optim.appearance_lr,
                head_lr_factor=optim.head_lr_factor,
                momentum=optim.momentum,
                weight_decay=optim.weight_decay,
            ),
            generator_optimizer=torch.optim.Adam(
                [*structure.parameters(), *decoder.parameters()], lr=optim.generator_lr, **adam
            ),
            discriminator_optimizer=torch.optim.Adam(discriminator.parameters(), lr=optim.discriminator_lr, **adam),
            identity_level=torch.full((2,), torch.nan, dtype=dtype_of(config.step), device=device),
            fault=torch.full((2,), -1, device=device),
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by name."""
        names = ("appearance_encoder", "structure_encoder", "decoder", "discriminator")
        return {name: getattr(self, name) for name in names}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name."""
        names = ("appearance_optimizer", "generator_optimizer", "discriminator_optimizer")
        return {name: getattr(self, name) for name in names}

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.identity_level.device

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers only, so `torch.load(weights_only=True)` reads it back."""
        return {
            "iteration": self.iteration,
            "identity_level": self.identity_level,
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: keys are missing or unknown, or tensors are of other shapes.
        """
        if set(saved) != {"iteration", "identity_level", "networks", "optimizers"}:
            raise ValueError(f"not a DG-Net training state: its keys are {sorted(saved)}")
        try:
            for name, net in self.networks.items():
                net.load_state_dict(saved["networks"][name])
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, saved["optimizers"][name])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the training state is of another configuration: {error}") from error
        self.identity_level.copy_(saved["identity_level"])
        self.iteration = saved["iteration"]


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over what an optimiser remembered of each parameter; its settings stay those it was built with.

    Moments get their parameter's memory layout: fused optimisers go through both in the order of the memory.

    Raises:
        KeyError, ValueError: `saved` is not of such an optimiser.
    """
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    groups = [{**group, "params": before["params"]} for group, before in groups]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for parameter, memory in optimizer.state.items():
        for name, value in memory.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                memory[name] = torch.empty_like(parameter).copy_(value)


def _load_trunk(trunk: nn.Module, teacher: Teacher | None) -> None:
    if teacher is None:
        raise ValueError(
            "trunk_from_teacher = True and no teacher: give TrainState.build a trained one, or set trunk_from_teacher"
            " to False and network.pretrained to what else the appearance encoder should start from"
        )
    try:
        trunk.load_state_dict(teacher.trunk.state_dict())
    except RuntimeError as error:
        raise ValueError(f"trunk_from_teacher = True, but the teacher's network is of other sizes: {error}") from error
