"""The table of methods: all that the platform needs to know of each. A new one is a folder, and a row here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dgnet_core.dgnet import generator, release
from dgnet_core.dgnet import schedule as dgnet_schedule
from dgnet_core.dgnet.config import DGNetConfig, check_learns
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step, warning
from dgnet_core.fdgan import step as fdgan
from dgnet_core.fdgan.config import FDGANConfig
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.schedule import Clock
from dgnet_core.learning.state import State
from dgnet_core.lsgan import step as lsgan
from dgnet_core.lsgan.config import LSGANConfig
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.pg2gan import step as pg2gan
from dgnet_core.pg2gan.config import PG2GANConfig
from dgnet_core.pngan import step as pngan
from dgnet_core.pngan.canonical import CanonicalNetwork
from dgnet_core.pngan.config import PNGANConfig
from dgnet_core.ranking.described import Described
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_core.teacher.step import teacher_settings, teacher_step

Config = TypeVar("Config", bound=MethodConfig)
TheState = TypeVar("TheState", bound=State)
Draw = Callable[[Tensor, Tensor], Tensor]
"""Draws images (N, 3, H, W): the sources' appearance in the targets' structure (posed methods: pose). Sources are
images (N, 3, H, W). So are targets, or, for posed methods, their joints (N, 18, 3) in pixels of these images."""
Invent = Callable[[int, int], Tensor]
"""So many images (N, 3, H, W) of people who do not exist, of a seed."""


@dataclass(frozen=True, kw_only=True)
class Method(Generic[Config, TheState]):
    """One row: how a method is built, trained, followed and used.

    A method of several stages is still one step: which stage it is in is a function of the iteration.
    """

    name: str
    """As checkpoints, runs and their names have it."""
    title: str
    """What tables of results call it."""
    config: type[Config]
    """Class of its settings."""
    build: Callable[..., TheState]
    """`build(config, device="cpu", *, pretrained=True)` -> the state before iteration 0, a pure function of the
    configuration; if `taught`, also with `teacher`."""
    step: Callable[..., dict[str, Tensor]]
    """`step(state, batch, config, *, reduce_grads)` advances the state by one iteration. It returns scalars: losses of
    generators and encoders as L_..., of discriminators as D_..., norms of gradients as grad_..., all of which must be
    finite, and others."""
    settings: Callable[[Config, int], dict[str, float]]
    """Loss weights as weight/... and learning rates as lr/... at a 0-based iteration."""
    sets: tuple[int, ...]
    """Index sets of PairSampler that an iteration reads: 0 batch a, 1 batch b, 2 and 3 their positives, 4 and 5 second
    positives."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """Losses that a terminal shows, and what it calls them."""
    taught: bool = False
    """Whether it may need a trained teacher; `needs_teacher` of the configuration says whether a run does."""
    describe: Callable[[TheState], DescriptorNetwork] | None = None
    """The network whose descriptors are ranked; None: the method describes no people."""
    verify: Callable[[TheState], Callable[[Tensor, Tensor], Tensor]] | None = None
    """What compares two descriptors of any length, to put a query's nearest in another order; None: nothing."""
    features: Callable[[Config, int], Mapping[str, float]] = lambda *_: {}
    """Descriptors that a run ranks by after so many iterations, the best last, and the weight of the fine half in each
    (0: f_prim alone, inf: f_fine alone); none with a half that has not learned anything yet."""
    chooses_beta: bool = False
    """Whether a run's held-out identities also say which weight of the fine half is best."""
    canonical: Callable[..., DescriptorNetwork] | None = None
    """`canonical(state, config, poses, originals, renderings)`: the network that describes a person by a model of
    pictures and one of what the method draws of them in canonical poses; None: there is no such network."""
    unlabelled: bool = False
    """Whether it learns images without identity, whose label is -1."""
    posed: bool = False
    """Whether it trains on pairs of images of a person, with their joints, and draws from joints."""
    draw: Callable[[TheState, Config], Draw] | None = None
    """What draws new images of a person; None: the method draws no given person."""
    invent: Callable[[TheState, Config], Invent] | None = None
    """What draws people from noise; None: the method does not."""
    interpolations: Mapping[str, Callable[[TheState, Tensor, Tensor, Tensor], Tensor]] = field(default_factory=dict)
    """By the code that is interpolated: what draws the images between two persons, the third one giving the rest."""
    export: Callable[[TheState, Path], None] | None = None
    """What writes the networks into a folder as the method's authors do; None: no such files are known."""
    clock: Callable[[Config], Clock] | None = None
    """When a run's ramped weights grow; None: it has none, and can be judged from its first iteration."""
    captured: bool = False
    """Whether CUDA graphs can hold its step (`StepConfig.graph`)."""
    warning: Callable[[Config, Mapping[str, float]], str] | None = None
    """A warning about an iteration's metrics, for terminal and log; "" if there is none."""
    check: Callable[[Config], None] = lambda _: None
    """Raises ValueError where a new run could not learn by its settings; runs that exist are read all the same."""

    def best_feature(self, config: Config, iteration: int) -> tuple[str, float]:
        """Name, and weight of the fine half, of the best descriptor by now; only of methods that describe."""
        return list(self.features(config, iteration).items())[-1]

    @property
    def positives(self) -> int:
        """Positives of each image that it needs of the sampler."""
        return max(1, max(self.sets) // 2)

    @property
    def generates(self) -> bool:
        """Whether it makes pictures at all."""
        return self.draw is not None or self.invent is not None


METHODS: dict[str, Method[Any, Any]] = {
    method.name: method
    for method in (
        Method(
            name="dgnet",
            title="DG-Net",
            config=DGNetConfig,
            build=TrainState.build,
            step=train_step,
            settings=dgnet_schedule.settings,
            sets=(0, 1, 2, 3),
            shown={
                "L_img1": "image",
                "L_s_id": "identity",
                "L_adv": "adversarial",
                "L_prim": "prim",
                "L_fine": "fine",
            },
            taught=True,
            describe=lambda state: state.describing_encoder,
            features=dgnet_schedule.features,
            chooses_beta=True,
            draw=lambda state, _: generator.drawing(state),
            interpolations={
                "appearance": generator.interpolate_appearance,
                "structure": generator.interpolate_structure,
            },
            export=release.save_release,
            clock=dgnet_schedule.clock,
            captured=True,
            warning=warning,
            check=check_learns,
        ),
        Method(
            name="teacher",
            title="baseline",
            config=TeacherConfig,
            build=TeacherState.build,
            step=teacher_step,
            settings=teacher_settings,
            sets=(0,),
            shown={"L_id": "identity"},
            describe=lambda state: state.describing_teacher,
            features=lambda *_: {"baseline": 0.0},
            unlabelled=True,
        ),
        Method(
            name="lsgan",
            title="LSGAN",
            config=LSGANConfig,
            build=lsgan.build,
            step=lsgan.lsgan_step,
            settings=lsgan.settings,
            sets=(0,),
            shown={"L_adv": "adversarial", "D_adv": "discriminator"},
            invent=lsgan.inventing,
        ),
        Method(
            name="pg2gan",
            title="PG2-GAN",
            config=PG2GANConfig,
            build=pg2gan.build,
            step=pg2gan.pg2gan_step,
            settings=pg2gan.settings,
            sets=(0, 1, 2, 3),
            shown={"L_image": "image", "L_mask": "person", "L_adv": "adversarial"},
            posed=True,
            draw=pg2gan.drawing,
        ),
        Method(
            name="pngan",
            title="PN-GAN",
            config=PNGANConfig,
            build=pngan.build,
            step=pngan.pngan_step,
            settings=pngan.settings,
            sets=(0, 2),
            shown={"L_image": "image", "L_adv": "adversarial"},
            canonical=lambda state, *rest: CanonicalNetwork(state.networks["generator"], *rest),
            posed=True,
            draw=pngan.drawing,
        ),
        Method(
            name="fdgan",
            title="FD-GAN",
            config=FDGANConfig,
            build=fdgan.build,
            step=fdgan.fdgan_step,
            settings=fdgan.settings,
            sets=(0, 1, 2, 3, 4),
            shown={"L_verification": "verification", "L_image": "image", "L_pose": "pose"},
            describe=fdgan.encoder_of,
            verify=fdgan.verifying,
            features=lambda *_: {"encoder": 0.0},
            posed=True,
            draw=fdgan.drawing,
        ),
    )
}


def method_of(config: MethodConfig) -> Method[Any, Any]:
    """The method that a configuration configures."""
    return next(method for method in METHODS.values() if type(config) is method.config)


def described(state: State, config: MethodConfig) -> Described:
    """What describes people, with the weight of f_fine in the best of the descriptors that have learned by now."""
    method, size = method_of(config), config.network
    assert method.describe is not None
    _, beta = method.best_feature(config, state.iteration)
    return Described(method.describe(state), height=size.height, width=size.width, beta=beta)


def needs_joints(config: MethodConfig) -> bool:
    """Whether a run needs key points of its training images: to train on, or to draw its batches by."""
    return method_of(config).posed or config.partners == "rare_pose"


def build(
    config: MethodConfig,
    device: torch.device | str = "cpu",
    *,
    teacher: Teacher | None = None,
    pretrained: bool = True,
) -> State:
    """The state of a run before its first iteration.

    Args:
        config: the run's.
        device: where the networks live.
        teacher: for methods that are taught; others leave it alone.
        pretrained: load the weights that the run starts from; False when a checkpoint will be loaded anyway.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: the teacher does not fit, the weights are not to be had, or
            `step.graph` where no graph can hold the step.
    """
    method = method_of(config)
    if config.step.graph and not method.captured:
        raise ValueError(f"step.graph = True: {method.title}'s step is not written for CUDA graphs; set it to False")
    taught = {"teacher": teacher} if method.taught else {}
    return method.build(config, device, pretrained=pretrained, **taught)
