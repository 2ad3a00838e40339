"""From a folder to machine types that a search can take."""

import sys
from pathlib import Path

import pytest

from mimimi_core.clips import find_clips
from search.data import DataError, find_data, pack_data
from tests.audio_fixtures import write_dcase2020


@pytest.mark.parametrize("machine_type", ["pump:2", 'pump "2"'])
def test_a_type_that_no_registry_can_carry_is_refused(tmp_path: Path, machine_type: str) -> None:
    for machine_id in ("id_00", "id_02"):
        clip = tmp_path / "data" / machine_type / "train" / f"normal_{machine_id}_0.wav"
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.touch()
    with pytest.raises(DataError, match='must not hold : or ".*rename its folder') as error:
        find_data(tmp_path / "data", tmp_path, None)
    assert repr(machine_type) in str(error.value)


def test_brackets_in_a_type_are_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("rich._console", None)  # a new one, which reads these
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pack_data(find_clips(write_dcase2020(tmp_path / "data", "fan[old]")), tmp_path)
    assert "packing fan[old]" in capsys.readouterr().out
