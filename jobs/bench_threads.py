#!/usr/bin/env python
"""What waiting threads cost: the laptop step on a quiet machine and beside other work, by how OpenMP waits.

    uv run jobs/bench_threads.py
    uv run jobs/bench_threads.py --busy 3 --seconds 20 --out results/bench_threads

Threads that wait actively spin at each barrier, also while the one they wait for is not scheduled; passive ones sleep.
Each case is a process of its own, for OpenMP reads its settings when PyTorch is loaded; cases take turns, twice.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

POLICIES: dict[str, dict[str, str]] = {
    "ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "ours": {},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = "while True: pass"


def step_for(seconds: float) -> dict[str, float]:
    """Train at laptop size for so long; images a second and processor seconds a step."""
    import dgnet_platform  # noqa: F401  # sets ours, where no policy is given, before PyTorch is loaded

    import torch  # isort: skip

    from dgnet_core.dgnet import config as presets
    from dgnet_core.dgnet.state import TrainState
    from dgnet_core.dgnet.step import train_step
    from dgnet_core.learning.augment import training_batch
    from dgnet_core.learning.batches import Position
    from dgnet_core.learning.memory import keep_freed_memory
    from dgnet_core.teacher.networks import Teacher

    keep_freed_memory()
    config = presets.laptop(80)
    state = TrainState.build(config, teacher=Teacher(config.network, config.num_classes), pretrained=False)
    state.iteration = config.loss.teacher_warmup.end(config.loss.prim)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4, config.batch_size, 3, 128, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(config.num_classes, (2, config.batch_size), generator=generator)

    def step() -> None:
        position = Position(seed=config.seed, iteration=state.iteration)
        train_step(state, training_batch(pixels, labels, position, config), config)

    step()
    steps, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        step()
        steps += 1
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {"images_per_second": 4 * config.batch_size * steps / wall, "processor_seconds": processor / steps}


def measured(policy: str, threads: int, busy: int, seconds: float) -> dict[str, float]:
    """One case, in a process of its own beside `busy` ones that never rest."""
    root = Path(__file__).parents[1]
    environment = os.environ | {
        **POLICIES[policy], "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{root}:{root}/platform",
    }  # fmt: skip
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--case", str(seconds)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--busy", type=int, default=3, help="processes beside it in the loaded case")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each case and turn")
    parser.add_argument("--out", type=Path, default=Path("results/bench_threads"), help="writes .md")
    parser.add_argument("--case", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(step_for(arguments.case)))
        return
    cases = [(busy, policy) for busy in (0, arguments.busy) for policy in POLICIES]
    found = {case: [] for case in cases}
    for _ in range(2):
        for busy, policy in cases:
            found[busy, policy].append(measured(policy, arguments.threads, busy, arguments.seconds))
    lines = [
        f"Laptop step after the warm-up, {arguments.threads} threads, both turns.",
        "",
        "| other processes | waiting | images/s | processor seconds a step |",
        "| --: | --- | --: | --: |",
    ]
    for (busy, policy), turns in found.items():
        images = " / ".join(f"{turn['images_per_second']:.1f}" for turn in turns)
        processor = " / ".join(f"{turn['processor_seconds']:.2f}" for turn in turns)
        lines.append(f"| {busy} | {policy} | {images} | {processor} |")
    text = "\n".join(lines) + "\n"
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
