"""What a cluster costs in time, and a lost host in steps.

As root: `PYTHONPATH=.:platform uv run tests/cluster/bench_lab.py`.

The hosts are those of tests/cluster/lab.py, so they share this machine's CPUs; most of the time is Python imports.
First a search begins, whose only trial trains on two hosts, without a shared prefix. Then a tiny run of two workers on
two hosts is saved every 5 iterations: a worker is killed, a host is cut off, and one is switched off. Lost are the
iterations that the run had done and had to do again.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from tests.cluster.lab import HEAD, WORKERS, Lab, lab, obstacle
from tests.cluster.lab_cluster import EVERY, SEARCH, Cluster, done, furnish, hosts_of, starts, wait_while

JOB = (
    "train_market.py --name bench --data /shared/people --teacher /shared/teacher --config /shared/base.yaml"
    " --workers 2 --model.iterations 1000000 --evaluate-every 1000000 --max-failures 10"
)


def kill_worker(lab: Lab, host: str) -> None:
    """As the machine does when it has no memory left."""
    lab.run(host, "pkill -KILL -f ^ray::RayTrainWorker")


LOSSES: dict[str, Callable[[Lab, str], None]] = {
    "a worker is killed": kill_worker,
    "a host is cut off": Lab.cut,
    "a host is switched off": Lab.off,
}


def main() -> None:
    """Measure and print two tables."""
    if reason := obstacle():
        sys.exit(reason)
    with lab() as hosts, tempfile.TemporaryDirectory() as temporary:
        prepare(PrepareConfig(dataset="people", size="tiny", out=Path(temporary) / "people", threads=1))
        furnish(hosts.shared, Path(temporary) / "people", Path(temporary))
        cluster = Cluster(hosts)
        moments = {"ray up": time.monotonic()}
        cluster.up()
        moments["all workers are there"] = time.monotonic()
        job, trial = cluster.submit(f"{SEARCH} --trials 1 --no-sharing"), hosts.shared / "runs" / "search-000"
        wait_while(job, lambda: starts(trial), "ranks")
        moments["both ranks of the first trial are ready"] = time.monotonic()
        wait_while(job, lambda: done(trial), "the first step")
        moments["the first trial has done a step"] = time.monotonic()
        output, _ = job.communicate(timeout=300)
        assert job.returncode == 0, output
        table = Table("", "seconds after ray up")
        for what, moment in moments.items():
            table.add_row(what, f"{moment - moments['ray up']:.0f}")
        Console().print(table)
        job, folder = cluster.submit(JOB), hosts.shared / "runs" / "bench"
        wait_while(job, lambda: done(folder), "the first step")
        table = Table("", "steps lost", "seconds without a step", title=f"A checkpoint every {EVERY} iterations")
        for what, lose in LOSSES.items():
            before = len(starts(folder))
            wait_while(job, lambda: done(folder) > starts(folder)[-1]["iteration"] + 2 * EVERY, "steps")
            host = hosts_of(starts(folder)[-1])[1]
            lose(hosts, host)
            begin, most = time.monotonic(), 0
            while len(starts(folder)) == before:
                most = max(most, done(folder))
                wait_while(job, lambda: True, "workers")
                time.sleep(0.05)
            start = starts(folder)[-1]["iteration"]
            wait_while(job, lambda start=start: done(folder) > start, "a step")
            table.add_row(what, str(most - start), f"{time.monotonic() - begin:.0f}")
            if lose is Lab.cut:  # two of three workers' hosts are needed for the next
                hosts.mend(host)
                wait_while(job, lambda: cluster.alive() == {HEAD, *WORKERS}, "the host's return")
        Console().print(table)


if __name__ == "__main__":
    main()
