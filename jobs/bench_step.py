#!/usr/bin/env python
"""How fast is the training step? Images/s, ms, memory and the share of the device's matmul peak, side by side.

    python jobs/bench_step.py                                  # paper size, every variant that runs here
    python jobs/bench_step.py --preset laptop --steps 10
    python jobs/bench_step.py --variants separate channels_last --out results/bench_step

Needs torch and torchvision only (`PYTHONPATH=. python3 jobs/bench_step.py` where the project is not installed). The
variant `separate` is the same iteration computed the plain way: one pass per batch and network, copies of the encoders
for reading generated images back, parameter gradients that nobody uses, upsampling before convolving. All variants take
turns in one process, so their ratios hold on a noisy machine; each is given a warm-up iteration of its own.
"""

import argparse
import copy
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dgnet_core import blocks, losses, schedule
from dgnet_core import config as presets
from dgnet_core.appearance import AppearanceEncoder, Head, pool_code
from dgnet_core.augment import training_batch
from dgnet_core.config import DGNetConfig, StepConfig
from dgnet_core.memory import keep_freed_memory
from dgnet_core.sampling import Batch, Position
from dgnet_core.state import TrainState
from dgnet_core.step import train_step
from dgnet_core.structure import to_gray
from dgnet_core.teacher import Teacher

VARIANTS = {
    "separate": StepConfig(channels_last=False),
    "eager": StepConfig(channels_last=False),
    "channels_last": StepConfig(),
    "compiled": StepConfig(compile=True),
    "bf16": StepConfig(precision="bfloat16"),
    "bf16_compiled": StepConfig(precision="bfloat16", compile=True),
}
PHASES = ("before warm-up", "after warm-up")


def upsample_then_convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `blocks.upsampled_conv` computes, the plain way."""
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0), (2,) * 4, mode="reflect"), weight, bias)


def separate_passes_step(state: TrainState, batch: Batch, config: DGNetConfig) -> dict[str, Tensor]:
    """The same iteration of the default recipe the plain way: what `train_step` is measured against."""
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
        adversarial.append(losses.discriminator_adversarial(D(fake.detach()), real_scores, config.recipe.gan))
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
            add("L_prim", losses.prim(logits(E_a, "prim", fed, "dropout prim generated", place, 2, False), target))
            add(
                "L_fine",
                losses.identity(logits(E_a, "fine", fed, "dropout fine generated", place, 2, False), labels[s]),
            )
    if ramped.prim > 0:
        for place, structure in enumerate(sums.pop("structure")):
            add("L_cyc", losses.image_l1(clean[place], G(structure, back[1 - place])))
    for place, code in enumerate(real_codes):
        prim = logits(E_a, "prim", code, "dropout prim real", place, 4, True)
        fine = logits(E_a, "fine", code, "dropout fine real", place, 4, True)
        add("L_s_id" if place < 2 else "L_s_id_positive", losses.identity(prim, labels[place % 2]))
        if place < 2:
            add("L_s_id_fine", losses.identity(fine, labels[place]))
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant in one phase."""

    variant: str
    phase: str
    ms: float
    """Best time of one iteration."""
    images_per_second: float
    """Real images trained on a second: 4 batches an iteration."""
    ratio: float
    """Times faster than the first variant of the same phase."""
    tflops: float
    """Floating-point operations a second / 10^12: twice the multiply-adds of convolutions and matmuls."""
    of_peak: float
    """Share of the device's matmul rate in the variant's precision, measured beside it."""
    memory_gb: float
    """Peak device memory of the iteration; on the CPU of the whole process so far."""


class FlopCount(TorchDispatchMode):
    """Adds up the floating-point operations of convolutions and matmuls, forward and backward."""

    # PyTorch's FlopCounterMode also tracks modules, by hooks that torch.autograd.grad refuses.
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and count it."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matmul."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, a)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def prepare(config: DGNetConfig, phase: str, device: torch.device) -> tuple[TrainState, Callable[[], Batch]]:
    """A state before or after its warm-up, and a maker of random batches for its next iteration."""
    teacher = Teacher(config.network, config.num_classes)
    state = TrainState.build(config, device, teacher=teacher, pretrained=False)
    if phase == "after warm-up":
        state.iteration = config.loss.teacher_warmup.end(config.loss.prim)
    generator = torch.Generator().manual_seed(0)
    shape = (4, config.batch_size, 3, config.network.height, config.network.width)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(config.num_classes, (2, config.batch_size), generator=generator)

    def batch() -> Batch:
        return training_batch(pixels, labels, Position(seed=config.seed, iteration=state.iteration), config)

    return state, batch


def one_step(separate: bool, state: TrainState, batch: Callable[[], Batch], config: DGNetConfig) -> None:
    """One iteration, its augmentation included."""
    if separate:
        with patch.object(blocks, "upsampled_conv", upsample_then_convolve):
            separate_passes_step(state, batch(), config)
    else:
        train_step(state, batch(), config)


def measure(config: DGNetConfig, variants: list[str], phase: str, steps: int, device: torch.device) -> list[Row]:
    """Time every variant in one phase; they take turns, and the best time of each counts."""
    runs: dict[str, Callable[[], object]] = {}
    flops, memory, best = {}, {}, dict.fromkeys(variants, float("inf"))
    for name in variants:
        variant = replace(config, step=VARIANTS[name])
        state, batch = prepare(variant, phase, device)
        run = runs[name] = partial(one_step, name == "separate", state, batch, variant)

        print(f"  {phase}: {name} ...", flush=True)
        if VARIANTS[name].compile:
            run()  # compiling is not counted
            flops[name] = flops.get("channels_last", float("nan"))
        else:
            with FlopCount() as counter:
                run()
            flops[name] = counter.total
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            run()
            memory[name] = torch.cuda.max_memory_allocated(device) / 1e9
        else:
            memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for _ in range(steps):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            best[name] = min(best[name], time.perf_counter() - start)
    precisions = {VARIANTS[name].precision for name in variants}
    peaks = {precision: matmul_rate(device, getattr(torch, precision)) for precision in precisions}
    images = 4 * config.batch_size
    return [
        Row(
            variant=name,
            phase=phase,
            ms=1000 * best[name],
            images_per_second=images / best[name],
            ratio=best[variants[0]] / best[name],
            tflops=flops[name] / best[name] / 1e12,
            of_peak=flops[name] / best[name] / peaks[VARIANTS[name].precision],
            memory_gb=memory[name],
        )
        for name in variants
    ]


def table(rows: list[Row], device: str, config: DGNetConfig) -> str:
    """The rows in Markdown."""
    network = config.network
    lines = [
        f"Training step at {network.height} x {network.width}, batch {config.batch_size}, on {device}"
        f" (PyTorch {torch.__version__}).",
        "",
        "| phase | variant | ms | images/s | ratio | TFLOP/s | of matmul peak | memory, GB |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        lines.append(
            f"| {row.phase} | {row.variant} | {row.ms:.1f} | {row.images_per_second:.2f} | {row.ratio:.2f} |"
            f" {row.tflops:.3f} | {row.of_peak:.0%} | {row.memory_gb:.2f} |"
        )
    return "\n".join(lines) + "\n"


def device_name(device: torch.device) -> str:
    """What the step ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("paper", "laptop"), default="paper")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), help="the first is the ratio's base")
    parser.add_argument("--steps", type=int, default=3, help="timed iterations of each variant and phase")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--classes", type=int, default=751)
    parser.add_argument("--out", type=Path, default=Path("results/bench_step"), help="writes .md and .json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    keep_freed_memory()
    everywhere = list(VARIANTS) if device.type == "cuda" else ["separate", "eager", "channels_last"]
    config = getattr(presets, arguments.preset)(arguments.classes, batch_size=arguments.batch_size)
    rows: list[Row] = []
    for phase in PHASES:
        rows += measure(config, arguments.variants or everywhere, phase, arguments.steps, device)
    text = table(rows, device_name(device), config)
    print("\n" + text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    arguments.out.with_suffix(".json").write_text(json.dumps([row.__dict__ for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
