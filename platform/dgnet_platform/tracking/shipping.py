"""Carries a run's journal to MLflow from a process of its own, so that neither its work nor its absence slows training.

The same process copies the run to the archive, if there is one.

The shipper asks MLflow how far it has come (the metric `iteration`) and sends what follows, whole iterations at a
time. When MLflow does not answer it tries again, from there: nothing is lost, nothing sent twice. It ends when the
training process says so, or is gone, and the journal is empty.
"""

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from PIL import Image

from dgnet_platform.runs.archive import archive_of, follow
from dgnet_platform.runs.checkpoint import CheckpointError, checkpoints, read_meta
from dgnet_platform.runs.journal import Entry, Tail, read
from dgnet_platform.runs.run import Run
from dgnet_platform.storage.files import lock
from dgnet_platform.tracking.client import UNREACHABLE, client

BATCH = 1000
"""Metrics in a request; MLflow takes no more."""
POLL, RETRY = 1.0, 3.0
"""Seconds between looks at the journal, and before trying again."""
PATIENCE = 30.0
"""Seconds without an answer after which the shipper of a run that is over gives up."""
LOG, OVER = "shipping.log", "over"
"""Where the shipping process complains, in a run's folder; what it is told, and answers, at a run's end."""

_WHOLE = "dgnet.checkpoint"
"""Tag of a checkpoint's model: `false` until its figures are there, and whoever finds that makes another one."""

_log = logging.getLogger(__name__)


class Shipper:
    """The shipping process of a run, as the training process sees it.

    It takes seconds to start, so a process that trains one run after the other, as a teacher and its student, keeps it.
    """

    _idle: ClassVar["Shipper | None"] = None

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    @classmethod
    def start(cls, folder: Path) -> "Shipper":
        """Start to ship the journal in a run's folder; what it has to complain of goes to shipping.log there."""
        shipper, cls._idle = cls._idle, None
        if shipper is None or not shipper._say(str(folder)):
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            with (folder / LOG).open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "dgnet_platform.tracking.shipping", str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the training process; this one ends when that does
                )
            shipper = cls(process)
        return shipper

    def finish(self) -> None:
        """Wait until the journal is shipped, or MLflow has not answered for PATIENCE."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._say(OVER) and self._process.stdout.readline():
            Shipper._idle = self
            return
        with suppress(BrokenPipeError):  # a process that died left what it was told unread
            self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> bool:
        """Write a line to the process; returns whether it lives."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return self._process.poll() is None


def ship(run: Run, finished: Callable[[], bool], *, patience: float = PATIENCE, monitor: bool = False) -> bool:
    """Ship a run's journal until `finished` and nothing is left.

    Args:
        run: whose journal.
        finished: whether no more lines will come.
        patience: seconds without an answer after which a finished run's shipping is given up.
        monitor: also tell MLflow of this machine's load meanwhile.

    Returns:
        Whether all of it is there. Another process that ships the same run is waited for.
    """
    with (run.folder / ".shipping.lock").open("w") as file:
        lock(file)
        load: SystemMetricsMonitor | None = None
        give_up = math.inf
        try:
            while True:
                try:
                    connected = client(run.tracking_uri)
                    done = connected.get_run(run.mlflow_run).data.metrics.get("iteration", 0)
                    if starts := run.starts:
                        connected.set_tag(run.mlflow_run, "dgnet.hosts", ", ".join(starts[-1]["hosts"]))
                    tail, models = Tail(run.folder, after=int(done)), _Models(connected, run)
                    if monitor and load is None:
                        load = SystemMetricsMonitor(run.mlflow_run, resume_logging=True, tracking_uri=run.tracking_uri)
                        load.start()
                    while True:
                        over = finished()  # before reading: all lines written until now are read
                        entries = list(tail.read(BATCH // 20))
                        _send(connected, run, entries)
                        models.follow()
                        give_up = math.inf
                        if not entries and over:
                            return True
                        if not entries:
                            _pause(POLL, finished)
                except UNREACHABLE as error:
                    _log.warning("MLflow at %s does not take the journal, trying again: %s", run.tracking_uri, error)
                    if finished():
                        give_up = min(give_up, time.monotonic() + patience)
                    if time.monotonic() > give_up:
                        return False
                    time.sleep(RETRY)
        finally:
            if load is not None:
                load.finish()


def _pause(seconds: float, finished: Callable[[], bool]) -> None:
    """Wait, but no longer than until the run is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not finished():
        time.sleep(0.1)


def _send(connected: MlflowClient, run: Run, entries: list[Entry]) -> None:
    """Send lines in order, each with all its metrics in one request."""
    batch: list[Metric] = []
    for entry in entries:
        for name, file in entry.pictures.items():
            if not (run.folder / file).exists():  # it was removed
                continue
            try:
                with Image.open(run.folder / file) as opened:
                    picture = opened.convert("RGB")
            except OSError as error:
                _log.warning("%s of %s is damaged and left out: %s", file, run.name, error)
                continue
            connected.log_image(run.mlflow_run, picture, key=name, step=entry.iteration)
        metrics = {**entry.metrics, "iteration": float(entry.iteration)}
        line = [Metric(name, value, entry.time, entry.iteration) for name, value in metrics.items()]
        line += _since_warmup(run, entry)
        if len(batch) + len(line) > BATCH:
            connected.log_batch(run.mlflow_run, metrics=batch)
            batch = []
        batch += line
    if batch:
        connected.log_batch(run.mlflow_run, metrics=batch)


def _since_warmup(run: Run, entry: Entry) -> list[Metric]:
    """Validation figures by iterations since the run's own warm-up, where its record asks for them."""
    if run.counted_from is None:
        return []
    step = entry.iteration - run.counted_from
    figures = {name: value for name, value in entry.metrics.items() if name.startswith("val/")}
    return [Metric(f"since_warmup/{name}", value, entry.time, step) for name, value in figures.items()]


class _Models:
    """Checkpoints as MLflow's models: those in the run's folder, with their iteration and figures."""

    def __init__(self, connected: MlflowClient, run: Run):
        self._client = connected
        self._run = run
        self._ids: dict[str, str] = {}
        token = None
        while True:
            found = connected.search_logged_models(
                [run.mlflow_experiment],
                f"source_run_id = '{run.mlflow_run}'",
                page_token=token,
            )
            for model in found:
                if model.tags.get(_WHOLE) == "true":
                    self._ids[model.name] = model.model_id
                elif _WHOLE in model.tags:
                    connected.delete_logged_model(model.model_id)
            token = found.token
            if not token:
                break

    def follow(self) -> None:
        """Make models of new checkpoints; delete those of checkpoints that were removed."""
        present = {path.name: path for path in checkpoints(self._run.folder)}
        for name in self._ids.keys() - present.keys():
            self._client.delete_logged_model(self._ids.pop(name))
        for name in sorted(present.keys() - self._ids.keys()):
            try:
                meta = read_meta(present[name])
            except CheckpointError:
                continue  # removed meanwhile, or damaged
            model = mlflow.create_external_model(
                name=name,
                source_run_id=self._run.mlflow_run,
                experiment_id=self._run.mlflow_experiment,
                model_type=self._run.identity["kind"],
                tags={_WHOLE: "false", "dgnet.path": str(present[name])},
                params={"iteration": str(meta.iteration)},
            )
            entry = next((entry for entry in read(self._run.folder) if entry.iteration == meta.iteration), None)
            figures = {k: v for k, v in entry.metrics.items() if k.startswith(("val/", "test/"))} if entry else {}
            if entry and figures:
                metrics = [
                    Metric(key, value, entry.time, entry.iteration, model_id=model.model_id)
                    for key, value in figures.items()
                ]
                self._client.log_batch(self._run.mlflow_run, metrics=metrics)
            self._client.log_outputs(self._run.mlflow_run, [LoggedModelOutput(model.model_id, meta.iteration)])
            self._client.set_logged_model_tags(model.model_id, {_WHOLE: "true"})
            self._ids[name] = model.model_id


def _archive(run: Run, over: Callable[[], bool]) -> None:
    """Copy a run to its archive until it is over."""
    archive = archive_of(run.experiment)
    if archive is not None:
        follow(archive, run.folder, over, prune=not run.keeps_all)


def main(folder: str) -> int:
    """Ship the run in `folder` until standard input closes, or says that it is over and which one comes next."""
    os.nice(5)
    complete = True
    while folder:
        logging.basicConfig(format="%(asctime)s %(message)s", filename=Path(folder) / LOG, force=True)
        over, ended = threading.Event(), threading.Event()

        def wait_for_end(over: threading.Event = over, ended: threading.Event = ended) -> None:
            if not sys.stdin.readline():
                ended.set()
            over.set()

        threading.Thread(target=wait_for_end, daemon=True).start()
        run = Run.read(Path(folder))
        archiving = threading.Thread(target=_archive, args=(run, over.is_set))
        archiving.start()
        complete = ship(run, over.is_set, monitor=True)
        archiving.join()
        over.wait()
        if ended.is_set():
            break
        print(OVER, flush=True)  # noqa: T201 - what `finish` waits for
        folder = sys.stdin.readline().strip()
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
