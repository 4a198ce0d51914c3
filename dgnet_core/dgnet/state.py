"""The state of a training run: networks, optimisers, iteration - what a checkpoint holds."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.networks import AppearanceEncoder, Decoder, Discriminator, StructureEncoder
from dgnet_core.learning.precision import dtype_of
from dgnet_core.learning.steps import load_optimizer, to_device, trunk_and_heads
from dgnet_core.networks.resnet import load_imagenet
from dgnet_core.teacher.networks import Teacher


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
            to_device(net, config.step, device)
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
