"""jobs/evaluate.py names what it cannot use, and replaces results only by whole ones, and nothing else."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from dgnet_core.dgnet.state import TrainState
from dgnet_platform.data.store import INFO_KEY, SCHEMA, Store
from dgnet_platform.evaluation import evaluate as evaluation
from dgnet_platform.evaluation import results
from dgnet_platform.evaluation.results import JSON
from dgnet_platform.runs import checkpoint
from jobs.evaluate import main
from tests.helpers.evaluations import CONFIG, run

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")


# ------------------------------------------------------------------------------------------------------------
# Results are replaced as a whole


def test_results_replace_results_only_when_complete(
    store: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "results"
    quick = ["--checkpoint", trained, "--store", store, "--out", out, "--swap-pairs", 0]
    assert run(*quick) == 0
    before = (out / JSON).read_bytes()

    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(results.pd.DataFrame, "to_parquet", broken)
        assert run(*quick, "--queries-shown", 0) == 2
    assert (out / JSON).read_bytes() == before
    assert (out / "ranked_drawn-people.png").exists()
    assert run(*quick, "--queries-shown", 0) == 0
    assert not (out / "ranked_drawn-people.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]

    out.rename(tmp_path / ".results.former")  # killed between the two renames
    assert run("--checkpoint", tmp_path / "nothing", "--store", store, "--out", out) == 2
    assert (out / JSON).exists()


def test_other_things_are_never_replaced(
    store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    arguments = ["--checkpoint", trained, "--store", store, "--swap-pairs", 0, "--out"]
    assert run(*arguments, tmp_path) == 2
    assert "holds other things than results" in capsys.readouterr().out
    assert run(*arguments, precious) == 2
    assert "is a file" in capsys.readouterr().out
    assert run(*arguments, precious / "below") == 2
    assert run(*arguments, tmp_path / "results") == 0
    (tmp_path / "results" / "notes.txt").write_text("mine")
    assert run(*arguments, tmp_path / "results") == 2
    assert precious.read_text() == (tmp_path / "results" / "notes.txt").read_text() == "mine"


def test_ctrl_c_leaves_the_results_that_were_there(
    store: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ["--checkpoint", trained, "--store", store, "--swap-pairs", 0, "--out", tmp_path / "results"]
    assert run(*arguments) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    monkeypatch.setattr(evaluation, "extract_splits", stop)
    assert run(*arguments) == 130
    assert "Stopped: the same command resumes" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


# ------------------------------------------------------------------------------------------------------------
# Bad input


def without(store: Path, split: str, target: Path) -> Path:
    """A copy of a store that never had a split."""
    target.mkdir()
    for path in store.glob("*.parquet"):
        with pq.ParquetFile(path) as file:
            table, metadata = file.read(), file.metadata.metadata
        info = json.loads(metadata[INFO_KEY])
        del info["splits"][split]
        if path.stem != split:
            with pq.ParquetWriter(target / path.name, SCHEMA) as writer:
                writer.write_table(table)
                writer.add_key_value_metadata({INFO_KEY.decode(): json.dumps(info)})
    return target


def test_bad_input_is_named_without_a_traceback(
    store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(*arguments: object) -> str:
        assert run(*arguments, "--out", tmp_path / "results") == 2
        assert list(tmp_path.glob("*results*")) == []
        return capsys.readouterr().out

    assert "nothing does not exist" in refused("--checkpoint", tmp_path / "nothing", "--store", store)
    assert "holds no store" in refused("--checkpoint", trained, "--store", tmp_path / "nothing")
    for split in ("query", "gallery"):
        lacking = without(store, split, tmp_path / f"no-{split}")
        assert f"has no {split}, only" in refused("--checkpoint", trained, "--store", lacking)

    damaged = tmp_path / "checkpoint_00000040"
    damaged.mkdir()
    for path in trained.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / checkpoint.TENSORS).write_bytes((damaged / checkpoint.TENSORS).read_bytes()[:-5])
    assert "tensors.pt has" in refused("--checkpoint", damaged, "--store", store)
    (tmp_path / "net_last.pth").write_text("no tensors")
    assert "net_last.pth is no PyTorch file" in refused("--teacher", tmp_path / "net_last.pth", "--store", store)
    if not torch.cuda.is_available():
        assert "finds no GPU" in refused("--checkpoint", trained, "--store", store, "--device", "cuda")

    state = TrainState.build(CONFIG)
    state.appearance_encoder.fine.norm.bias.data[0] = math.nan
    broken = checkpoint.save(state, CONFIG, tmp_path / "broken")
    assert "DG-Net on query: fine: 8 rows hold NaN" in refused("--checkpoint", broken, "--store", store)


def test_a_query_without_a_match_is_named(
    store: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    opened = Store.open(store)
    person = int(opened.index("query")["person_id"].iloc[-1])
    index = Store.index

    def other_index(self: Store, split: str) -> pd.DataFrame:
        rows = index(self, split)
        return rows.query(f"person_id != {person}") if split == "gallery" else rows

    monkeypatch.setattr(Store, "index", other_index)
    assert run("--checkpoint", trained, "--store", store, "--out", tmp_path / "results") == 2
    assert re.search(rf"query {person:04d}_c1s1_000000_00.jpg shows person {person}, whom no", capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--store", "x", "--out", "y"],
        ["--checkpoint", "x", "--out", "y"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--beta", "-1"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--batch-size", "0"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--workers", "2"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--distributed", "--workers", "0"],
    ],
)
def test_bad_arguments_end_with_status_2(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
