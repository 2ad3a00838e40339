"""One classifier for the ids of all machine types, beside one per type."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mimimi_core.pack import open_pack, pack_clips
from search.data import JOINT, DataError, find_data
from search.report import write_report
from search.report_facts import read_facts
from search.report_joint import joint_section
from tests.report_fixtures import OUTCOME, make_study


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Fans and pumps of two ids each, every clip another noise."""
    rng = np.random.default_rng(0)
    for machine_type in ("fan", "pump"):
        for machine_id in ("id_00", "id_02"):
            for part, label, n in (
                ("train", "normal", 12),
                ("test", "normal", 6),
                ("test", "anomaly", 6),
            ):
                for number in range(n):
                    file = tmp_path / "data" / machine_type / part
                    file.mkdir(parents=True, exist_ok=True)
                    samples = rng.normal(0, 0.1, 400)
                    soundfile.write(file / f"{label}_{machine_id}_{number:08d}.wav", samples, 16000)
    return tmp_path / "data"


def test_machines_keep_their_names_and_get_their_types(recordings: Path, tmp_path: Path) -> None:
    manifest = find_data(recordings, tmp_path, None, joint=True)
    assert list(manifest) == ["fan", "pump", JOINT]
    assert {clip.machine_id for clip in manifest[JOINT]} == {
        "fan_id_00",
        "fan_id_02",
        "pump_id_00",
        "pump_id_02",
    }
    assert len(manifest[JOINT]) == len(manifest["fan"]) + len(manifest["pump"])


def test_no_clip_changes_its_split(recordings: Path, tmp_path: Path) -> None:
    """Else the joint classifier would train on, or be chosen by, what others are tested on."""
    manifest = find_data(recordings, tmp_path, None, joint=True)
    splits = {}
    for machine_type, clips in manifest.items():
        pack = open_pack(pack_clips(clips, tmp_path / "packs"))
        splits[machine_type] = dict(zip(pack.names, pack.splits, strict=True))
    assert splits[JOINT] == splits["fan"] | splits["pump"]
    assert len(set(splits[JOINT].values())) == 4  # train, holdout, val, test


def test_the_types_that_are_joined_are_those_chosen(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two machine types or more.* it has fan$"):
        find_data(recordings, tmp_path, ["fan"], joint=True)


def test_a_machine_type_of_that_name_is_refused(recordings: Path, tmp_path: Path) -> None:
    (recordings / "pump").rename(recordings / JOINT)
    with pytest.raises(DataError, match=f"none of them named {JOINT}"):
        find_data(recordings, tmp_path, None, joint=True)


def test_the_report_sets_both_side_by_side(tmp_path: Path) -> None:
    own = OUTCOME["test_per_id"]
    make_study(tmp_path / "s", "fan").set_user_attr("outcome", OUTCOME)
    theirs = [
        dict(row, machine_id=f"fan_{row['machine_id']}", auc=row["auc"] and 0.6) for row in own
    ]
    other = [dict(own[0], machine_id=name) for name in ("pump_id_00", "fan_big_id_00")]
    joint = make_study(tmp_path / "s", JOINT)
    joint.set_user_attr("outcome", OUTCOME | {"test_per_id": theirs + other})
    section = joint_section(read_facts(tmp_path / "s"))
    assert section is not None
    ((machine_type, alone, alone_ci, together, _),) = section.rows
    assert (machine_type, alone, together) == ("fan", "0.800", "0.600")
    assert alone_ci == "[0.710, 0.861]"  # MOVER: .8 - |(.1, .15)| / 2, .8 + |(.07, .1)| / 2
    assert section.title in (write_report(tmp_path / "s") / "report.html").read_text()


def test_without_a_joint_classifier_nothing_is_said(tmp_path: Path) -> None:
    make_study(tmp_path / "s", "fan").set_user_attr("outcome", OUTCOME)
    assert joint_section(read_facts(tmp_path / "s")) is None
