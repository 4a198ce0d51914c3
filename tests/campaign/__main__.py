"""A campaign of faults: each is drawn from a seed, the same command is run again, and the outcome is compared.

    uv run python -m tests.campaign --kills 40 --seed 1
    uv run python -m tests.campaign --kills 10 --jobs training search --faults kill server

A fault is a job, a kind and a moment. *kill* is SIGKILL to the command alone, *stop* is SIGTERM, *pause* SIGSTOP, and
SIGCONT 5 seconds later; *disk* lets no file of the command grow from that moment on; *server* kills MLflow's server and
starts it again 5 seconds later, *refuse* has it answer 500 and 503 as long. A cluster's search, on hosts made of
namespaces, loses a worker's host that is switched *off*, or *cut* off the network, for a short or a long time. Half of
them wait from the moment on for a write: a file that is half there, or a journal that grows. Then the same command is
run until it ends. What it leaves is compared with what an undisturbed command left: bits of weights, curves, metric
steps in MLflow (each once), trials, files. The table has a line for each job and kind of fault.
The exit status is 1 if any outcome differs.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.campaign.campaign import FAULTS
from tests.campaign.jobs import ALONE, CLUSTER, campaign
from tests.cluster.lab import obstacle


def main() -> int:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many faults")
    parser.add_argument("--seed", type=int, default=0, help="draws kinds and moments")
    parser.add_argument("--jobs", nargs="+", choices=(*ALONE, CLUSTER), default=ALONE)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--folder", type=Path, help="keep all there; none: a temporary one")
    options = parser.parse_args()
    if CLUSTER in options.jobs and (reason := obstacle()):
        parser.error(f"--jobs {CLUSTER}: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        try:
            done = campaign(root, options.kills, options.seed, options.jobs, options.faults, Console(soft_wrap=True))
        except KeyboardInterrupt:  # the table of what was done is printed
            return 128 + signal.SIGINT
    return int(any(fault.differences for fault in done))


if __name__ == "__main__":
    sys.exit(main())
