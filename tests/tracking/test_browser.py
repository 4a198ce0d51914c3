"""The MLflow UI on a real run, in a real browser: what a user looks at is there."""

import os
import re
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from dgnet_platform.runs.tracking_uri import where_to_look
from dgnet_platform.training.driver import train
from tests.helpers.runs import QUIET, tiny_experiment
from tests.helpers.servers import answers, stop, wait_for

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def page(tmp_path):
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        yield page
        browser.close()


def test_the_run_its_curves_and_its_swaps_are_shown(page, people_store, tmp_path, free_port):
    run = train(tiny_experiment(people_store, tmp_path), console=QUIET).run
    uri = f"http://127.0.0.1:{free_port}"
    command: list[str] = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(free_port),
               "--workers", "1", "--backend-store-uri", run.tracking_uri]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    with (tmp_path / "server.log").open("ab") as log:
        server = psutil.Popen(command, env=environment, stdout=log, stderr=log)
    shots = Path(os.environ.get("DGNET_SCREENSHOTS") or tmp_path)
    try:
        wait_for(lambda: answers(uri))
        page.goto(where_to_look(uri, run.mlflow_experiment, run.mlflow_run))  # the address that commands print
        page.get_by_text(run.name).first.wait_for(timeout=60_000)
        page.get_by_role("link", name="Models", exact=True).first.wait_for(timeout=60_000)  # the view for training
        search = page.get_by_placeholder("Search metric charts")
        page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)  # the list of metrics is there
        search.fill("L_img1")
        page.get_by_text("loss/L_img1").first.wait_for(timeout=60_000)
        curve = page.locator(".js-plotly-plot path.js-line").first
        curve.wait_for(state="attached", timeout=60_000)
        assert len(curve.get_attribute("d") or "") > 50, "the curve has hardly a point"
        page.screenshot(path=shots / "mlflow_metrics.png")

        page.goto(f"{uri}/#/experiments/{run.mlflow_experiment}/runs/{run.mlflow_run}")
        page.get_by_text("Query and gallery, %").first.wait_for(timeout=60_000)  # the report
        page.screenshot(path=shots / "mlflow_report.png")

        page.goto(f"{uri}/#/experiments/{run.mlflow_experiment}/runs/{run.mlflow_run}/artifacts")
        for folder, file in (("images", r"swaps\+step\+12\+.*\.png"), ("results", "swaps_drawn-people.png")):
            page.get_by_text(folder, exact=True).click(timeout=60_000)
            page.get_by_text(re.compile(file)).first.click(timeout=60_000)
            page.wait_for_function("[...document.images].some(image => image.naturalWidth > 300)", timeout=60_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=shots / "mlflow_swaps.png")
    finally:
        stop(server)
