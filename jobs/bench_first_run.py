#!/usr/bin/env python
"""The first run as a newcomer meets it: how long until there is something to see, and README's tables of what it shows.

    uv run jobs/bench_first_run.py                              # in a new folder, results/first_run
    uv run jobs/bench_first_run.py --busy 3 --out results/busy  # beside three processes that never rest
    uv run jobs/bench_first_run.py --run runs/people-dgnet-...  # tables of a run that is finished; nothing is trained

Trains by `uv run jobs/train_market.py`'s own command. `--out` receives the run, tables in first_run.md and its swaps.
Options after `--` are the command's, such as `-- --iterations 400`.
"""

import argparse
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dgnet_platform.cli.evaluate import against
from dgnet_platform.errors import UserError
from dgnet_platform.evaluation import results
from dgnet_platform.runs.run import RESULTS

BUSY = "while True: pass"
STAGES = {
    "people are drawn": "data/*/train.parquet",
    "the teacher is trained and evaluated": "*-teacher-*/results/results.json",
    "first swaps": "*-dgnet-*/pictures/swaps/*.png",
    "DG-Net is trained and evaluated": "*-dgnet-*/results/results.json",
}
"""What appears in the storage folder, in this order."""
PERSON = {
    "person_L1": ("L1", 3), "person_SSIM": ("SSIM", 2), "upper_colour": ("upper", 1), "lower_colour": ("lower", 1),
    "transfer": ("transfer", 2), "sharpness": ("sharp", 2),
}  # fmt: skip
"""Figures of swaps without their background: heading and digits."""


def train(storage: Path, busy: int, options: list[str]) -> list[tuple[str, float]]:
    """Seconds until each stage of the first run, and what its processes took of the processor.

    Raises:
        UserError: the command failed.
    """
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    seen: list[tuple[str, float]] = []
    try:
        command = [sys.executable, Path(__file__).with_name("train_market.py"), "--storage", storage, *options]
        process = subprocess.Popen(command)
        while True:
            ended = process.poll() is not None
            for stage, pattern in list(STAGES.items())[len(seen) :]:
                if not any(storage.glob(pattern)):
                    break
                seen.append((stage, time.monotonic() - begun))
            if ended:
                break
            time.sleep(0.2)
    finally:
        for other in others:
            other.kill()
    if process.returncode:
        raise UserError(f"the first run ended with status {process.returncode}: what it says above is why")
    seen.append(("the command ends", time.monotonic() - begun))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the busy ones are not waited for yet
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for other in others:
        other.wait()
    return [*seen, ("of processor time", used)]


def tables(run: Path) -> str:
    """Retrieval by single queries and swaps of unseen people, as README has them."""
    evaluation = results.read(run / RESULTS)
    found, differences = evaluation.retrieval.to_dict("records"), evaluation.differences.to_dict("records")
    rows = [row for row in found if row["query"] == "single" and not row["reranked"]]
    lines = [
        "| | Rank@1 | mAP | 95 % interval | against the teacher, paired by query |",
        "| --- | --: | --: | --- | --- |",
    ]
    for row in rows:
        interval = f"{100 * row['mAP_low']:.1f} to {100 * row['mAP_high']:.1f}"
        verdict = against(differences, row, rows[0]["feature"])
        lines.append(f"| {_name(row)} | {100 * row['rank1']:.1f} | {100 * row['mAP']:.1f} | {interval} | {verdict} |")
    lines += ["", "| | " + " | ".join(heading for heading, _ in PERSON.values()) + " |"]
    lines.append("| --- |" + " --: |" * len(PERSON))
    for row in evaluation.swaps.to_dict("records"):
        if row["identities"] != "unseen":
            continue
        figures = (f"{row[name]:.{digits}f}" for name, (_, digits) in PERSON.items())
        lines.append(f"| {row['picture']} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _name(row: dict[Any, Any]) -> str:
    beta = row.get("beta")
    return row["feature"] if beta is None or math.isnan(beta) else f"{row['feature']}, beta {beta:g}"


def main() -> int:
    """Parse the command line, train if asked, print and write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of DG-Net on drawn people: nothing is trained")
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest beside it")
    parser.add_argument("--out", type=Path, default=Path("results/first_run"), help="a new folder")
    parser.add_argument("options", nargs="*", help="options of jobs/train_market.py, after --")
    arguments = parser.parse_args()
    if arguments.run is not None:
        print(tables(arguments.run))
        return 0
    if fixed := {option.partition("=")[0] for option in arguments.options} & {"--name", "--data", "--storage"}:
        print(f"{min(fixed)}: a first run has neither name nor data nor another folder", file=sys.stderr)
        return 2
    if arguments.out.exists():
        print(f"--out {arguments.out} exists: name a new folder, for a first run finds nothing", file=sys.stderr)
        return 2
    storage = arguments.out / "runs"
    try:
        stages = train(storage, arguments.busy, arguments.options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    (run,) = storage.glob("*-dgnet-*")
    beside = f", {arguments.busy} busy processes beside it" if arguments.busy else ""
    text = [
        f"{os.cpu_count()} cores{beside}, load {os.getloadavg()[2]:.1f} at the end.",
        "",
        "| | s |",
        "| --- | --: |",
    ]
    text += [f"| {stage} | {seconds:.0f} |" for stage, seconds in stages]
    text = "\n".join([*text, "", tables(run)])
    (arguments.out / "first_run.md").write_text(text, encoding="utf-8")
    shutil.copy(next((run / RESULTS).glob("swaps_*.png")), arguments.out / "swaps.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
