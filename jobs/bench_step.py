#!/usr/bin/env python
"""How fast is the training step? Images/s, ms, hours a run, operators, memory, shares of draws and of the matmul peak.

    uv run jobs/bench_step.py                                  # paper size, every variant that runs here
    uv run jobs/bench_step.py --preset laptop --steps 10
    uv run jobs/bench_step.py --variants separate channels_last --batch-size 4 8 --out results/bench_step

Needs torch and torchvision only (`PYTHONPATH=. python3 jobs/bench_step.py` where the project is not installed). The
variant `separate` is the same iteration computed the plain way: one pass per batch and network, copies of the encoders
for reading generated images back, parameter gradients without a use, upsampling before convolving. All variants take
turns in one process, so their ratios hold on a noisy machine; each is given a warm-up iteration of its own.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dgnet_core.dgnet import config as presets
from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.plain_step import separate_passes_step, upsample_then_convolve
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Batch, Position
from dgnet_core.learning.config import StepConfig
from dgnet_core.learning.memory import keep_freed_memory
from dgnet_core.networks import blocks
from dgnet_core.teacher.networks import Teacher

VARIANTS = {
    "separate": StepConfig(channels_last=False),
    "eager": StepConfig(channels_last=False),
    "channels_last": StepConfig(),
    "compiled": StepConfig(compile=True),
    "bf16": StepConfig(precision="bfloat16"),
    "bf16_compiled": StepConfig(precision="bfloat16", compile=True),
    "graph": StepConfig(graph=True),
    "bf16_graph": StepConfig(precision="bfloat16", graph=True),
    "compiled_graph": StepConfig(compile=True, graph=True),
    "bf16_compiled_graph": StepConfig(precision="bfloat16", compile=True, graph=True),
}
LAUNCH_NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "split", "unbind", "detach", "alias",
    "lift_fresh", "_unsafe_view", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip
"""Operators that are views and allocations, though PyTorch does not mark them as views."""
PHASES = ("before warm-up", "after warm-up")
ITERATIONS = 100_000
"""Of the paper's run."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant in one phase."""

    variant: str
    phase: str
    batch_size: int
    ms: float
    """Best time of one iteration."""
    hours: float
    """Of 100,000 such iterations."""
    images_per_second: float
    """Real images trained on a second: 4 batches an iteration."""
    ratio: float
    """Times faster than the first variant of the same phase and batch size."""
    tflops: float
    """Floating-point operations a second / 10^12: twice the multiply-adds of convolutions and matmuls."""
    of_peak: float
    """Share of the device's matmul rate in the variant's precision, measured beside it."""
    draws: float
    """What an iteration's random draws take by themselves, launched one by one, as a share of the iteration's time."""
    operators: float
    """PyTorch operators that an iteration dispatches, views and allocations left out: about as many launches."""
    memory_gb: float
    """Peak device memory of the iteration; on the CPU of the whole process so far."""


class Count(TorchDispatchMode):
    """Adds up operators, and the floating-point operations of convolutions and matmuls, forward and backward."""

    # PyTorch's FlopCounterMode also tracks modules, by hooks that torch.autograd.grad refuses.
    flops = 0
    operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operator and count it."""
        out = func(*args, **(kwargs or {}))
        self.operators += not (func.is_view or func.overloadpacket.__name__ in LAUNCH_NOTHING)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long something takes on a device, until it has finished."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matmul."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / min(seconds(partial(torch.mm, a, a), device) for _ in range(5))


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


def draws_of(run: Callable[[], object]) -> Callable[[], object]:
    """Run an iteration; returns what makes its random draws again, and nothing else."""
    calls: list[tuple[Any, ...]] = []
    draw = Position.uniforms

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return draw(*arguments)

    with patch.object(Position, "uniforms", noted):
        run()
    return lambda: [draw(*arguments) for arguments in calls]


def measure(config: DGNetConfig, variants: list[str], phase: str, steps: int, device: torch.device) -> list[Row]:
    """Time every variant in one phase; they take turns, and the best time of each counts."""
    runs: dict[str, Callable[[], object]] = {}
    draws: dict[str, Callable[[], object]] = {}
    flops, operators, memory = {}, {}, {}
    best, best_draws = (dict.fromkeys(variants, float("inf")) for _ in range(2))
    for name in variants:
        variant = replace(config, step=VARIANTS[name])
        state, batch = prepare(variant, phase, device)
        run = runs[name] = partial(one_step, name == "separate", state, batch, variant)

        print(f"  batch {config.batch_size}, {phase}: {name} ...", flush=True)
        draws[name] = draws_of(run)  # makes the optimisers' memory, or compiles
        if VARIANTS[name].compile:
            flops[name], operators[name] = flops.get("channels_last", float("nan")), float("nan")
        else:
            with Count() as count:
                run()
            flops[name], operators[name] = count.flops, count.operators
        if VARIANTS[name].graph:
            for _ in range(8):  # both sides of the coin that lets the structure encoder learn are captured
                run()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            run()
            memory[name] = torch.cuda.max_memory_allocated(device) / 1e9
        else:
            memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for _ in range(steps):
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run, device))
            best_draws[name] = min(best_draws[name], seconds(draws[name], device))
    precisions = {VARIANTS[name].precision for name in variants}
    peaks = {precision: matmul_rate(device, getattr(torch, precision)) for precision in precisions}
    images = 4 * config.batch_size
    return [
        Row(
            variant=name,
            phase=phase,
            batch_size=config.batch_size,
            ms=1000 * best[name],
            hours=ITERATIONS * best[name] / 3600,
            images_per_second=images / best[name],
            ratio=best[variants[0]] / best[name],
            tflops=flops[name] / best[name] / 1e12,
            of_peak=flops[name] / best[name] / peaks[VARIANTS[name].precision],
            draws=best_draws[name] / best[name],
            operators=operators[name],
            memory_gb=memory[name],
        )
        for name in variants
    ]


def table(rows: list[Row], device: str, config: DGNetConfig) -> str:
    """The rows in Markdown."""
    network = config.network
    lines = [
        f"Training step at {network.height} x {network.width} on {device} (PyTorch {torch.__version__}).",
        "",
        f"| batch | phase | variant | ms | images/s | ratio | hours for {ITERATIONS:,} iterations | TFLOP/s"
        " | of matmul peak | draws | operators | memory, GB |",
        "| --: | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        lines.append(
            f"| {row.batch_size} | {row.phase} | {row.variant} | {row.ms:.1f} | {row.images_per_second:.2f}"
            f" | {row.ratio:.2f} | {row.hours:.1f} | {row.tflops:.3f} | {row.of_peak:.0%} | {row.draws:.2%}"
            f" | {row.operators:,.0f} | {row.memory_gb:.2f} |"
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
    parser.add_argument("--preset", choices=("paper", "strong", "laptop"), default="paper")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), help="the first is the ratio's base")
    parser.add_argument("--steps", type=int, default=3, help="timed iterations of each variant and phase")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8], help="one or several")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images; the preset's")
    parser.add_argument("--classes", type=int, default=751)
    parser.add_argument("--out", type=Path, default=Path("results/bench_step"), help="writes .md and .json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    keep_freed_memory()
    config = getattr(presets, arguments.preset)(arguments.classes)
    plain = not config.recipe.code_teaches_decoder
    if "separate" in (arguments.variants or ()) and not plain:
        parser.error(f"--variants separate: the plain way has no preset {arguments.preset}; take paper")
    everywhere = list(VARIANTS) if device.type == "cuda" else ["separate", "eager", "channels_last"]
    everywhere = [name for name in everywhere if plain or name != "separate"]
    if arguments.size:
        height, width = arguments.size
        config = replace(config, network=replace(config.network, height=height, width=width))
    rows: list[Row] = []
    for batch_size in arguments.batch_size:
        sized = replace(config, batch_size=batch_size)
        for phase in PHASES:
            rows += measure(sized, arguments.variants or everywhere, phase, arguments.steps, device)
    text = table(rows, device_name(device), config)
    print("\n" + text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    arguments.out.with_suffix(".json").write_text(json.dumps([row.__dict__ for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
