#!/usr/bin/env python
"""What workers cost beside computing: the share of a step that its collectives take, on ranks of this machine.

    uv run jobs/bench_ranks.py
    uv run jobs/bench_ranks.py --ranks 4 --batch-size 16 --steps 20 --out results/bench_ranks

Each rank is a process with its share of the batch and of the cores; they talk by gloo. Three ways take turns in one
run, so their ratios hold on a noisy machine: without collectives (each rank trains by itself), with gradients averaged
and BatchNorm of each rank's own images, and with synchronised BatchNorm. The times of collectives include waiting for
the slowest rank.
"""

import argparse
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from dgnet_core.dgnet import config as presets
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Position, share
from dgnet_core.learning.memory import keep_freed_memory
from dgnet_core.learning.steps import keep_local
from dgnet_core.networks.batch_norm import synchronised
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.training.collectives import average_gradients, sum_over_ranks

WAYS = ("no collectives", "local", "synchronised")


class Stopwatch:
    """Seconds, calls and bytes of collectives, by what they are for."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, float] = defaultdict(float)
        self.megabytes: defaultdict[str, float] = defaultdict(float)

    def around(self, name: str, collective: Callable[[Any], object]) -> Callable[[Any], None]:
        """The collective, timed."""

        def timed(argument: Any) -> None:
            start = time.perf_counter()
            collective(argument)
            self.seconds[name] += time.perf_counter() - start
            self.calls[name] += 1
            tensors = [argument] if isinstance(argument, Tensor) else [parameter.grad for parameter in argument]
            self.megabytes[name] += sum(tensor.nbytes for tensor in tensors if tensor is not None) / 1e6

        return timed


def rank_of(rank: int, ranks: int, port: int, preset: str, batch_size: int, steps: int, out: str) -> None:
    """One process: all ways in turn, after one step of each that is not counted."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    keep_freed_memory()
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    config = getattr(presets, preset)(751, batch_size=batch_size)
    teacher = Teacher(config.network, config.num_classes)
    places = share(batch_size, rank, ranks)
    part = len(places) / batch_size
    generator = torch.Generator().manual_seed(rank)
    shape = (4, len(places), 3, config.network.height, config.network.width)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(config.num_classes, (2, len(places)), generator=generator)
    found: dict[str, dict[str, float]] = {}
    watches = {way: Stopwatch() for way in WAYS}
    states = {way: TrainState.build(config, teacher=teacher, pretrained=False) for way in WAYS}
    total: defaultdict[str, float] = defaultdict(float)
    for turn in range(steps + 1):
        for way in WAYS:
            state = states[way]
            if turn == 0:
                state.iteration = config.loss.teacher_warmup.end(config.loss.prim)
            if turn == 1:
                watches[way] = Stopwatch()
            watch = watches[way]
            average = watch.around("gradients", partial(average_gradients, share=part))
            sums = watch.around("BatchNorm", sum_over_ranks) if way == "synchronised" else None
            position = Position(seed=0, iteration=state.iteration, first=places.start, total=batch_size)
            batch = training_batch(pixels, labels, position, config)
            dist.barrier()
            start = time.perf_counter()
            with synchronised(sums):
                reduce_grads = keep_local if way == "no collectives" else average
                train_step(state, batch, config, reduce_grads=reduce_grads)
            dist.barrier()
            total[way] += (time.perf_counter() - start) * (turn > 0)
    for way, watch in watches.items():
        found[way] = {"ms": 1000 * total[way] / steps, "ratio": total[way] / total[WAYS[0]]}
        for name in ("gradients", "BatchNorm"):
            found[way] |= {
                f"{name} share": watch.seconds[name] / total[way],
                f"{name} calls": watch.calls[name] / steps,
                f"{name} MB": watch.megabytes[name] / steps,
            }
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def table(found: dict[str, dict[str, float]], ranks: int, batch_size: int, preset: str) -> str:
    """The figures in Markdown."""
    lines = [
        f"Step of `{preset}` after the warm-up, batch {batch_size} over {ranks} gloo ranks of one machine.",
        "",
        "| BatchNorm | ms | ratio | gradients: share | calls | MB | statistics: share | calls | MB |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for way, values in found.items():
        cells = [f"{values['ms']:.0f}", f"{values['ratio']:.2f}"]
        for name in ("gradients", "BatchNorm"):
            cells += [f"{values[f'{name} share']:.0%}", f"{values[f'{name} calls']:.0f}", f"{values[f'{name} MB']:.2f}"]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("paper", "laptop"), default="laptop")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each way")
    parser.add_argument("--out", type=Path, default=Path("results/bench_ranks"), help="writes .md and .json")
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        out = str(Path(folder) / "found.json")
        sizes = (arguments.preset, arguments.batch_size, arguments.steps)
        spawn(rank_of, (arguments.ranks, port, *sizes, out), nprocs=arguments.ranks)
        found = json.loads(Path(out).read_text(encoding="utf-8"))
    text = table(found, arguments.ranks, arguments.batch_size, arguments.preset)
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
