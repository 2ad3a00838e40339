"""Bad input ends in one clear line and exit 2, before any trial starts."""

import shutil
import socket
from pathlib import Path

import pytest

from search import run
from tests.audio_fixtures import real_clips
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

SPACE = """\
study: {trials: 2, epochs: 2}
scheduler: {name: asha, grace_epochs: 1}
parameters:
  network.channels: {kind: int, low: 4, high: 8}
  network.attention: {kind: bool}
"""
SMOKE = ROOT / "spaces" / "smoke.yaml"


def refusal(capsys: pytest.CaptureFixture[str], out: Path, *args: object) -> str:
    """Run the command in `out`, which must refuse; the last line it says."""
    assert run.main([*map(str, args), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert not list(out.glob("*/optuna.journal"))
    line = said.err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("trials: 2, ", "", ["study.trials", "missing"]),
        ("epochs: 2}", "epochs: 2, epoch: 3}", ["study.epoch", "no known key"]),
        ("low: 4", "low: 9", ["network.channels", "low must be <= high", "9", "8"]),
        ("{kind: bool}", "{kind: bool, when: {a: 1}}", ["network.attention.when", "'a'"]),
        ("network.channels", "network.chanels", ["network.chanels", "network.channels"]),
        ("low: 4", "low: 0", ["network.channels", ">= 1", "0"]),
        ("low: 4", "low: many", ["network.channels.low", "many"]),
        ("name: asha", "name: luck", ["scheduler.name", "'asha'", "luck"]),
    ],
)
def test_mistakes_in_the_space_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    embedded: Path,
    old: str,
    new: str,
    wanted: list[str],
) -> None:
    assert old in SPACE
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.replace(old, new))
    line = refusal(capsys, tmp_path / "out", "--space", path, "--data", embedded)
    assert str(path) in line
    for words in wanted:
        assert words in line


def test_no_such_space_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.yaml" in refusal(capsys, tmp_path, "--space", tmp_path / "nothing.yaml")


@pytest.mark.parametrize("budget", ["10", "ten minutes", "-5m", "0s"])
def test_time_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str) -> None:
    line = refusal(capsys, tmp_path, "--space", SMOKE, f"--time-budget={budget}")
    assert "--time-budget" in line
    assert budget in line


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    assert str(missing) in refusal(capsys, tmp_path, "--space", SMOKE, "--data", missing)


def test_folder_without_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refusal(capsys, tmp_path, "--space", SMOKE, "--data", empty)


def test_unknown_machine_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], embedded: Path
) -> None:
    args = ("--space", SMOKE, "--data", embedded, "--machine-types", "fan,turbine")
    line = refusal(capsys, tmp_path, *args)
    assert "'turbine'" in line
    assert "fan, pump" in line


def test_truncated_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str], embedded: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(embedded / "fan", data / "fan")
    clip = sorted((data / "fan" / "train").iterdir())[3]
    clip.write_bytes(clip.read_bytes()[:-1000])
    line = refusal(capsys, tmp_path / "out", "--space", SMOKE, "--data", data)
    assert clip.name in line


def test_name_of_no_known_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], embedded: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(embedded / "fan", data / "fan")
    clip = sorted((data / "fan" / "train").iterdir())[3]
    clip.rename(clip.with_name("tuesday.wav"))
    line = refusal(capsys, tmp_path / "out", "--space", SMOKE, "--data", data)
    assert "tuesday.wav" in line


def test_lone_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, tmp_path, "--space", SMOKE, "--data", real_clips() / "mimii-mini")
    assert "id_00" in line
    assert "sister" in line


def test_unreachable_tracking_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], embedded: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    args = ("--space", SMOKE, "--data", embedded, "--tracking-uri", uri)
    assert uri in refusal(capsys, tmp_path, *args)


def test_unreachable_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], embedded: Path
) -> None:
    args = ("--space", SMOKE, "--data", embedded, "--address", "127.0.0.1:1")
    assert run.main([*map(str, args), "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--address" in line
    assert "'127.0.0.1:1'" in line
