"""DG-Net's iteration the plain way, a pass per batch and copied encoders: the oracle, and the best introduction."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.dgnet import schedule
from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.losses import prim
from dgnet_core.dgnet.networks import AppearanceEncoder, pool_code, to_gray
from dgnet_core.dgnet.state import TrainState
from dgnet_core.learning import losses
from dgnet_core.learning.batches import Batch
from dgnet_core.networks.resnet import Head


def upsample_then_convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `blocks.upsampled_conv` computes, the plain way."""
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0), (2,) * 4, mode="reflect"), weight, bias)


def separate_passes_step(state: TrainState, batch: Batch, config: DGNetConfig) -> dict[str, Tensor]:
    """The same iteration of the default recipe, but that `reencode_probability` is 0 or 1: what `train_step` is
    measured against. Over 80 lines, as `_iterate` is: an iteration is read from top to bottom."""
    ramped = schedule.weights(config.loss, config.recipe, state.iteration)
    E_a, E_s, G, D, weight = (
        state.appearance_encoder, state.structure_encoder, state.decoder, state.discriminator, config.loss,
    )  # fmt: skip
    clean = batch.images.unbind(0)
    seen = clean if batch.erased is None else batch.erased.unbind(0)
    labels = batch.labels.to(state.device)
    pairs = ((0, 1), (1, 0))  # (structure owner, appearance owner)
    terms: dict[str, Tensor] = {}

    def logits(encoder: AppearanceEncoder, head: str, code: Tensor, purpose: str, place: int, groups: int, track: bool):
        module: Head = getattr(encoder, head)
        feature = module(pool_code(code), track=track)
        noise = batch.position.uniform(purpose, (len(feature), groups, feature.shape[1]), feature.device)[:, place]
        return module.logits(feature, noise if module.dropout else None)

    structures = [E_s(to_gray(x)) for x in clean[:2]]
    real_codes = [E_a(x, track=True) for x in seen]
    codes = [c.detach() for c in (real_codes if batch.erased is None else [E_a(x) for x in clean])]
    same = [G(structures[i], codes[i]) for i in range(2)]
    paired = [G(structures[i], codes[2 + i]) for i in range(2)]
    crossed = [G(structures[s], codes[a]) for s, a in pairs]

    state.discriminator_optimizer.zero_grad()
    adversarial, penalty = [], []
    for fake, real in zip(crossed, clean[:2], strict=True):
        real = real.detach().requires_grad_()
        real_scores = D(real)
        adversarial += losses.discriminator_adversarial(D(fake.detach()), real_scores, config.recipe.gan)
        penalty.append(losses.gradient_penalty(real_scores, real))
    terms["D_adv"], terms["D_penalty"] = torch.stack(adversarial).sum(), torch.stack(penalty).sum()
    (weight.adversarial * terms["D_adv"] + weight.gradient_penalty * terms["D_penalty"]).backward()
    state.discriminator_optimizer.step()

    state.generator_optimizer.zero_grad()
    state.appearance_optimizer.zero_grad()
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, value: Tensor) -> None:
        sums.setdefault(name, []).append(value)

    frozen_E_a, frozen_E_s = copy.deepcopy(E_a), copy.deepcopy(E_s)
    back = []
    for place, (s, a) in enumerate(pairs):
        fake = crossed[place]
        add("L_adv", losses.generator_adversarial(D(fake), config.recipe.gan))
        code = frozen_E_a(fake)
        back.append(code.detach())
        add("L_c_id", losses.identity(frozen_E_a.prim.logits(frozen_E_a.prim(pool_code(code))), labels[a]))
        add("L_img1", losses.image_l1(clean[place], same[place]))
        add("L_img2", losses.image_l1(clean[place], paired[place]))
        if ramped.prim > 0:
            add("L_code1", losses.code_l1(codes[a], code.detach()))
            structure = (
                frozen_E_s(to_gray(fake)) if config.recipe.reencode_probability == 0 else E_s(to_gray(fake.detach()))
            )
            add("L_code2", losses.code_l1(structures[s].detach(), structure))
            add("structure", structure)
            fed = E_a(fake.detach())
            assert state.teacher is not None
            target = state.teacher.labels(fake.detach(), groups=1)
            add("L_prim", prim(logits(E_a, "prim", fed, "dropout prim generated", place, 2, False), target))
            add(
                "L_fine",
                losses.identity(logits(E_a, "fine", fed, "dropout fine generated", place, 2, False), labels[s]),
            )
    if ramped.prim > 0:
        for place, structure in enumerate(sums.pop("structure")):
            add("L_cyc", losses.image_l1(clean[place], G(structure, back[1 - place])))
    for place, code in enumerate(real_codes):
        prim_logits = logits(E_a, "prim", code, "dropout prim real", place, 4, True)
        fine_logits = logits(E_a, "fine", code, "dropout fine real", place, 4, True)
        add("L_s_id" if place < 2 else "L_s_id_positive", losses.identity(prim_logits, labels[place % 2]))
        if place < 2:
            add("L_s_id_fine", losses.identity(fine_logits, labels[place]))
    terms |= {name: torch.stack(values).sum() for name, values in sums.items()}
    weights = {
        "L_img1": weight.image, "L_img2": weight.image, "L_s_id": weight.identity, "L_adv": weight.adversarial,
        "L_s_id_positive": weight.positive_identity, "L_c_id": weight.generated_identity, "L_prim": ramped.prim,
        "L_fine": ramped.fine, "L_s_id_fine": weight.identity * ramped.fine_real, "L_cyc": ramped.cycle,
        "L_code2": ramped.structure_code,
    }  # fmt: skip
    torch.stack([value * terms[name] for name, value in weights.items() if name in terms]).sum().backward()
    state.generator_optimizer.step()
    state.appearance_optimizer.step()
    state.iteration += 1
    return {name: term.detach() for name, term in terms.items()}
