"""Photographs a study in MLflow's UI: the table of runs, and the best trials side by side.

Starts `mlflow server` on the loopback interface over an existing SQLite tracking store, opens it in
headless Chromium and writes `mlflow-runs.png` and `mlflow-compare.png`. Needs Chromium and the
Python package playwright, which is no dependency of this project (`pip install playwright`; the
browsers it would download are not needed):

    python docs/screenshot_ui.py sqlite:///runs/mlflow.db STUDY docs
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_EXPANDERS = '[data-component-id$="runnamecellrenderer.tsx_46"]'
_MOST_COMPARED = 6  # trials; more columns do not fit
_CLOSE_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
"""


def main() -> int:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description="screenshots of a study in MLflow's UI")
    parser.add_argument("tracking_uri", help="sqlite:///PATH")
    parser.add_argument("experiment", help="name of the study")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="its executable")
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is missing: pip install playwright", file=sys.stderr)
        return 2
    client = MlflowClient(args.tracking_uri)
    experiment = client.get_experiment_by_name(args.experiment)
    if experiment is None:
        print(f"no experiment {args.experiment!r} in {args.tracking_uri}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    best = _best_trials(client, experiment.experiment_id)
    with _server(args.tracking_uri) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=_CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1900, "height": 1150})
        page.add_init_script(_CLOSE_ASSISTANT)
        _photograph_runs(page, url, experiment.experiment_id, args.out / "mlflow-runs.png")
        _photograph_comparison(
            page, url, experiment.experiment_id, best, args.out / "mlflow-compare.png"
        )
        browser.close()
    return 0


def _best_trials(client: MlflowClient, experiment_id: str) -> list[str]:
    """Run ids of the best complete trials of the machine type that has most of them."""
    by_type: dict[str, list[str]] = {}
    runs = client.search_runs(
        [experiment_id], "tags.state = 'complete'", order_by=["metrics.objective DESC"]
    )
    for run in runs:
        by_type.setdefault(run.data.tags["machine_type"], []).append(run.info.run_id)
    return max(by_type.values(), key=len, default=[])[:_MOST_COMPARED]


def _photograph_runs(page: Any, url: str, experiment_id: str, path: Path) -> None:
    """The view that the search left in the experiment, with every parent run unfolded."""
    page.goto(f"{url}/#/experiments/{experiment_id}/runs?viewStateShareKey=trials")
    page.locator(_EXPANDERS).first.wait_for()
    page.wait_for_timeout(1500)  # the columns of the view come after the rows
    for expander in reversed(page.query_selector_all(_EXPANDERS)):
        expander.click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    page.screenshot(path=path)


def _photograph_comparison(
    page: Any, url: str, experiment_id: str, run_ids: list[str], path: Path
) -> None:
    """Parameters against val_auc in parallel coordinates, above the tables that differ."""
    runs = ",".join(f'"{run_id}"' for run_id in run_ids)
    page.set_viewport_size({"width": 1900, "height": 1780})
    page.goto(f'{url}/#/compare-runs?runs=[{runs}]&experiments=["{experiment_id}"]')
    metrics = page.get_by_role("combobox").nth(1)
    metrics.click()
    page.keyboard.press("Backspace")  # the metric that MLflow chose
    page.keyboard.type("val_auc")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    for table in ("Parameters", "Metrics"):
        page.get_by_role("switch", name=f"{table} - Show diff only").click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)  # the plot is drawn anew
    page.screenshot(path=path)


@contextmanager
def _server(tracking_uri: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", tracking_uri]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/health", process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("mlflow server did not start; try the command by hand: mlflow server ...")


if __name__ == "__main__":
    sys.exit(main())
