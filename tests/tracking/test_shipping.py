"""The shipping process as the training process sees it."""

import subprocess
import sys

import pytest

from dgnet_platform.tracking.shipping import Shipper


def test_one_that_died_does_not_end_the_run_that_it_shipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Shipper, "_idle", None)  # that of another test's runs
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        process.wait()
        Shipper(process).finish()
    assert Shipper._idle is None
