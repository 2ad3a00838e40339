"""The paper's figures as commands, on the embedded data set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimimi_core.config import FrontendConfig
from tests.e2e.conftest import ROOT
from tests.model_fixtures import make_detector

pytestmark = pytest.mark.e2e


def command(name: str, *args: object, cwd: Path) -> str:
    """Run a command that must succeed; what it says to people."""
    words = [sys.executable, "-m", f"mimimi_core.{name}", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_figures_of_the_paper(embedded: Path, tmp_path: Path) -> None:
    clips = sorted((embedded / "fan" / "test").glob("*_id_06_0000000[01].wav"))
    assert len(clips) == 4
    assert command("rainbowgram", "--out", "clips.png", *clips, cwd=tmp_path) == ""

    ids = ("id_00", "id_02", "id_04", "id_06")
    make_detector(frontend=FrontendConfig(), machine_ids=ids).save(tmp_path / "model")
    args = ("--model", "model", "--data", embedded, "--machine-type", "fan")
    assert command("tsne", *args, "--out", "fan.png", cwd=tmp_path) == ""
    for name in ("clips.png", "fan.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
