"""From a folder to machine types that a search can take."""

from pathlib import Path

import pytest

from search.data import DataError, find_data


@pytest.mark.parametrize("machine_type", ["pump:2", 'pump "2"'])
def test_a_type_that_no_registry_can_carry_is_refused(tmp_path: Path, machine_type: str) -> None:
    for machine_id in ("id_00", "id_02"):
        clip = tmp_path / "data" / machine_type / "train" / f"normal_{machine_id}_0.wav"
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.touch()
    with pytest.raises(DataError, match='must not hold : or ".*rename its folder') as error:
        find_data(tmp_path / "data", tmp_path, None)
    assert repr(machine_type) in str(error.value)
