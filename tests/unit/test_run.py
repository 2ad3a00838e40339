"""What the command line refuses before it reads or writes anything."""

from pathlib import Path

import pytest

from search.run import main


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


@pytest.mark.parametrize("name", ["fan", "2026-11-29", "fan_2.1", "_fan", "lüfter"])
def test_plain_names_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "nowhere.yaml", f"--study={name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere.yaml" in line
