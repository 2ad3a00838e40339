"""What the command line refuses before it reads or writes anything."""

from pathlib import Path

import pytest

from search import run
from search.run import main
from tests.small_disk import small_disk

SMOKE = Path(__file__).parents[2] / "spaces" / "smoke.yaml"


@pytest.mark.parametrize("name", ["a/fan", "/tmp/fan", "", ".", "..", ".fan", "-fan", "my fan"])
def test_a_study_s_name_is_that_of_one_folder(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--space", "nowhere.yaml", f"--study={name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --study must be ")
    assert line.endswith(f"got {name!r}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["artifacts", "embedded", "mlflow.db", "packs"])
def test_a_study_s_name_is_that_of_nothing_else_in_out(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--space", "nowhere.yaml", f"--study={name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --study must not be ")
    assert line.endswith(f"got {name!r}")


@pytest.mark.parametrize("name", ["fan", "2026-11-29", "fan_2.1", "_fan", "lüfter"])
def test_plain_names_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "nowhere.yaml", f"--study={name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere.yaml" in line


@pytest.mark.parametrize("below", ["", "below"], ids=["a file", "below a file"])
def test_out_is_a_folder_that_can_be_written(
    below: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "find_data", lambda *args, **options: pytest.fail("work was done"))
    (tmp_path / "file").touch()
    out = tmp_path / "file" / below
    assert main(["--space", str(SMOKE), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --out must be a folder that can be written, got ")
    assert str(out) in line


def test_out_is_not_made_by_a_dry_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["--space", str(SMOKE), "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()


def test_a_disk_that_is_full_before_the_embedded_clips_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        assert main(["--space", str(SMOKE), "--out", str(disk.place)]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: [Errno 28] No space left on device")
        assert f"make room on the disk of --out {disk.place}" in line
        assert not list(disk.place.rglob("*.wav"))
