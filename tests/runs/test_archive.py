"""The archive of runs and prefixes, on S3 and in a folder: what is lost here comes back from there."""

import logging
import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.runs import archive, checkpoint
from dgnet_platform.runs.archive import Archive, follow
from dgnet_platform.runs.checkpoint import META, TENSORS, checkpoints
from dgnet_platform.runs.run import Run
from dgnet_platform.storage.remote import RemoteError, open_place
from dgnet_platform.training import driver as training
from dgnet_platform.training.driver import train
from jobs.train_market import main as train_market
from tests.helpers.prefixes import prefixes_in
from tests.helpers.remote import empty_cache, names, upload
from tests.helpers.runs import NETWORK, QUIET, by_command_line, history, job, lines, same, tensors, tiny_experiment
from tests.helpers.servers import wait_for

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow, its database and its web server warn of each other


# ----------------------------------------------------------------------------------------------------------------
# The archive of a folder


@pytest.fixture(params=["s3", "file"])
def storage(request, tmp_path, s3):
    """A storage folder with a run, and its archive."""
    uri = f"{s3}/{tmp_path.name}" if request.param == "s3" else (tmp_path / "archive").as_uri()
    storage = Storage(tmp_path / "runs", Archive(uri, tmp_path / "runs"))
    storage.folder.mkdir(parents=True)
    (storage.folder / "run.json").write_text("{}")
    (storage.folder / "shipping.log").write_text("nothing to keep")
    (storage.folder / ".hidden").write_text("nor this")
    return storage


class Storage:
    """A storage folder with a run that saves, and its archive."""

    def __init__(self, root: Path, archive: Archive):
        self.root, self.archive, self.folder = root, archive, root / "run"

    def save(self, *iterations: int) -> None:
        """Go on to some iterations: journal, a picture and a checkpoint of each."""
        config = TeacherConfig(num_classes=2, batch_size=2, network=NETWORK)
        state = TeacherState.build(config, pretrained=False)
        for iteration in iterations:
            state.iteration = iteration
            (self.folder / "metrics.jsonl").write_text("\n" * iteration)
            picture = self.folder / "pictures" / "swaps" / f"{iteration:08d}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(bytes(iteration))
            checkpoint.save(state, config, self.folder)

    @property
    def journal(self) -> int:
        """Lines of the journal."""
        return len((self.folder / "metrics.jsonl").read_text())

    def content(self) -> dict[str, bytes]:
        """All files of the run that are worth keeping."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.name[0] != "."]
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files if file.suffix != ".log"}

    @property
    def archived(self) -> list[str]:
        return names(f"{self.archive.location}/run")


def test_a_lost_folder_comes_back_as_it_was(storage, monkeypatch):
    storage.save(2, 4)
    storage.archive.push(storage.folder)
    before = storage.content()
    assert storage.archived == sorted(before)
    shutil.rmtree(storage.folder)
    assert storage.archive.fetch(storage.folder)
    assert storage.content() == before
    assert not storage.archive.fetch(storage.folder)
    monkeypatch.setattr(archive, "put", lambda *_: pytest.fail("it is there already"))
    storage.archive.push(storage.folder)


def test_removed_checkpoints_are_removed_there(storage):
    storage.save(2, 4)
    storage.archive.push(storage.folder)
    storage.save(6)
    checkpoint.prune(storage.folder, keep_last=1)
    storage.archive.push(storage.folder, prune=False)
    assert sum(name.endswith(META) for name in storage.archived) == 3
    storage.archive.push(storage.folder)
    assert sorted(storage.content()) == storage.archived
    shutil.rmtree(checkpoints(storage.folder)[0])  # a disk that lost some of it removes nothing there
    storage.archive.push(storage.folder)
    assert storage.archive.fetch(storage.folder)
    assert checkpoints(storage.folder)[0].name == "checkpoint_00000006"


def test_a_checkpoint_that_is_half_there_is_not_taken(storage, monkeypatch):
    storage.save(2)
    storage.archive.push(storage.folder)
    storage.save(4)
    put = archive.put

    def dies(source, *rest):
        if source.name == META:
            raise OSError("killed")
        put(source, *rest)

    monkeypatch.setattr(archive, "put", dies)
    with pytest.raises(RemoteError, match="killed"):
        storage.archive.push(storage.folder)
    monkeypatch.undo()
    assert f"checkpoint_00000004/{TENSORS}" in storage.archived
    shutil.rmtree(storage.folder)
    storage.archive.fetch(storage.folder)
    assert [path.name for path in checkpoints(storage.folder)] == ["checkpoint_00000002"]
    assert storage.journal == 4
    storage.save(4)
    storage.archive.push(storage.folder)
    assert storage.archived == sorted(storage.content())


def test_a_damaged_checkpoint_is_not_taken(storage, caplog):
    storage.save(2, 4)
    storage.archive.push(storage.folder)
    filesystem, root = open_place(f"{storage.archive.location}/run/checkpoint_00000004/{TENSORS}")
    with filesystem.open_input_stream(root) as stream:
        content = bytearray(stream.read())
    content[1000] ^= 1
    with filesystem.open_output_stream(root) as stream:
        stream.write(content)
    shutil.rmtree(storage.folder)
    assert storage.archive.fetch(storage.folder)
    assert [path.name for path in checkpoints(storage.folder)] == ["checkpoint_00000002"]
    assert "checkpoint_00000004 in the archive" in caplog.text
    assert not storage.archive.fetch(storage.folder)


def test_what_is_here_and_newer_stays(storage):
    storage.save(2)
    storage.archive.push(storage.folder)
    storage.save(4)
    (storage.folder / "run.json").write_text('{"newer": true}')
    before = storage.content()
    assert not storage.archive.fetch(storage.folder)
    assert storage.content() == before
    storage.archive.push(storage.folder)
    checkpoint.prune(storage.folder, keep_last=1)
    assert not storage.archive.fetch(storage.folder)  # what was removed here does not come back


def test_a_journal_comes_with_a_newer_checkpoint(storage):
    storage.save(2, 4)
    storage.archive.push(storage.folder)
    shutil.rmtree(storage.folder / "checkpoint_00000004")
    (storage.folder / "metrics.jsonl").write_text("\n" * 3)
    assert storage.archive.fetch(storage.folder)
    assert storage.journal == 4


def test_an_archive_that_is_away_is_told_once_and_gets_all_later(storage, monkeypatch, caplog):
    storage.save(2)
    push, calls = Archive.push, []

    def away_at_first(self, *arguments, **options):
        calls.append(1)
        if len(calls) < 4:
            raise RemoteError("away")
        push(self, *arguments, **options)

    monkeypatch.setattr(Archive, "push", away_at_first)
    monkeypatch.setattr(archive, "RETRY", 0.01)
    monkeypatch.setattr(archive, "POLL", 0.01)
    over = threading.Event()
    threading.Timer(0.5, over.set).start()
    with caplog.at_level(logging.WARNING):
        assert follow(storage.archive, storage.folder, over.is_set)
    assert caplog.text.count("trying again") == 1
    assert storage.archived == sorted(storage.content())
    calls.clear()
    monkeypatch.setattr(Archive, "push", lambda *_, **__: away_at_first(storage.archive) or calls.clear())
    assert not follow(storage.archive, storage.folder, lambda: True, patience=0.05)


# ----------------------------------------------------------------------------------------------------------------
# Prefixes and whole runs


@pytest.fixture
def prefixes(people_store, tmp_path, one_thread, monkeypatch):
    return prefixes_in(tmp_path, people_store, monkeypatch)


@pytest.fixture
def node(tmp_path, monkeypatch):
    return empty_cache(tmp_path, monkeypatch)


def test_a_prefix_in_the_archive_is_not_trained_again(s3, prefixes, tmp_path):
    kept = Archive(f"{s3}/prefixes", tmp_path)
    whole = prefixes(4, checkpoint_every=1)
    kept.push(whole.run.folder, prune=False)

    def elsewhere(name: str) -> dict[str, Any]:
        return {"storage": str(tmp_path / name), "archive": f"{s3}/prefixes", "checkpoint_every": 1}

    found = prefixes(4, **elsewhere("other"))
    assert found.checkpoint.is_relative_to(tmp_path / "other")
    assert same(tensors(found.run, 4), tensors(whole.run, 4))
    assert [path.name for path in checkpoints(found.run.folder)] == ["checkpoint_00000004"]
    prefixes(3, **elsewhere("third"))
    longer = prefixes(6, **elsewhere("third"))
    assert [line["iteration"] for line in lines(longer.run.folder)] == [1, 2, 3, 4, 5, 6]
    assert prefixes.trained == [(0, 4), (3, 3), (4, 6)]  # 4 was not there yet
    shutil.rmtree(tmp_path / "third")


def test_an_archive_that_cannot_be_written_is_refused_before_anything_is_begun(s3, people_store, tmp_path, capsys):
    experiment = tiny_experiment(people_store, tmp_path / "runs", archive="s3://none-such/runs")
    assert train_market(by_command_line(experiment, tmp_path / "experiment.yaml")) == 2
    assert "there is no such bucket" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_run_goes_on_when_its_machine_is_lost(s3, people_store, tmp_path, node, monkeypatch):
    monkeypatch.setattr(training, "publish_model", lambda *_: "models:/none")  # it takes as long as all the rest
    upload(people_store, f"{s3}/market")
    last, storage = 24, tmp_path / "runs"
    experiment = tiny_experiment(people_store, tmp_path / "whole", name="whole", evaluate_every=last // 2)
    teacher = TeacherState.build(experiment.baseline, pretrained=False)
    path = checkpoint.save(teacher, experiment.baseline, tmp_path / "teacher")
    experiment = replace(experiment, model=replace(experiment.model, iterations=last), teacher=str(path))
    whole = train(experiment, console=QUIET).run
    experiment = replace(
        experiment, data=f"{s3}/market", storage=str(storage), archive=f"{s3}/runs", name="lost", checkpoint_every=6,
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )  # fmt: skip
    options = by_command_line(experiment, tmp_path / "experiment.yaml")
    environment = {"DGNET_CACHE": str(node.parent)}
    process = job("train_market.py", *options, **environment)
    driver = psutil.Process(process.pid)
    wait_for(lambda: (storage / "lost" / "checkpoint_00000006").exists() or process.poll() is not None)
    driver.suspend()  # while what it saved is shipped
    wait_for(lambda: any(name.endswith(META) for name in names(f"{s3}/runs")))
    machine = [driver, *driver.children(recursive=True)]
    for each in machine:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    psutil.wait_procs(machine, timeout=10)
    assert not (storage / "lost" / f"checkpoint_{last:08d}").exists(), "it was killed too late to tell"
    shutil.rmtree(storage)
    [kept] = [path for path in node.iterdir() if path.is_dir()]
    downloaded = {file: file.stat().st_mtime_ns for file in kept.iterdir()}

    process = job("train_market.py", *options, **environment)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Brought run lost back from s3://bucket/runs" in output
    run = Run.read(storage / "lost")
    assert same(tensors(run, last), tensors(whole, last))
    assert [line["iteration"] for line in lines(run.folder)] == list(range(1, last + 1))
    assert {line["iteration"] for line in lines(run.folder) if "pictures" in line} == {last // 2, last}
    client = MlflowClient(run.tracking_uri)
    [tracked] = client.search_runs([run.mlflow_experiment])
    assert tracked.info.run_id == run.mlflow_run
    assert history(client, run, "iteration") == [(t, float(t)) for t in range(1, last + 1)]
    assert {file: file.stat().st_mtime_ns for file in kept.iterdir()} == downloaded
    local = [str(file.relative_to(run.folder)) for file in archive._files(run.folder)]
    local += [f"{path.name}/{name}" for path in checkpoints(run.folder) for name in (META, TENSORS)]
    assert names(f"{s3}/runs/lost") == sorted(local)

    # Finished, and lost with MLflow's database: nothing is trained, and all curves are sent anew.
    shutil.rmtree(storage)
    (tmp_path / "mlflow.db").unlink()
    again = train(replace(experiment, data=str(people_store)), console=QUIET)
    assert again.outcome.ending == "finished"
    assert history(MlflowClient(again.run.tracking_uri), again.run, "iteration") == [
        (t, float(t)) for t in range(1, last + 1)
    ]
