import os
from pathlib import Path

import pytest

from mimimi_core.clips import Clip, ManifestError, find_clips
from tests.audio_fixtures import (
    real_clips,
    write_dcase2020,
    write_dcase2021,
    write_mimii,
    write_wav,
)


def _about(clip: Clip) -> tuple[str, str, int, str]:
    return clip.machine_type, clip.machine_id, clip.label, clip.part


def test_dcase_2020(tmp_path: Path) -> None:
    write_dcase2020(tmp_path / "dev_data_fan", "fan")
    write_dcase2020(tmp_path, "valve", ids=("id_04",), n_train=1, n_test=1)
    found = find_clips(tmp_path)
    assert list(found) == ["fan", "valve"]
    assert len(found["fan"]) == 2 * (3 + 2 + 2)
    assert [(clip.name, *_about(clip)) for clip in found["valve"]] == [
        ("valve/test/anomaly_id_04_00000000.wav", "valve", "id_04", 1, "labelled"),
        ("valve/test/normal_id_04_00000000.wav", "valve", "id_04", 0, "labelled"),
        ("valve/train/normal_id_04_00000000.wav", "valve", "id_04", 0, "train"),
    ]
    assert all(clip.path == tmp_path / clip.name for clip in found["fan"])


@pytest.mark.parametrize("tests", [("test",), ("source_test", "target_test")])
def test_dcase_2021_and_later(tmp_path: Path, tests: tuple[str, ...]) -> None:
    (clips,) = find_clips(write_dcase2021(tmp_path, tests=tests)).values()
    expected = {
        ("gearbox", section, label, part)
        for section in ("section_00", "section_01")
        for label, part in ((0, "train"), (0, "labelled"), (1, "labelled"))
    }
    assert {_about(clip) for clip in clips} == expected
    assert len(clips) == 4 + 4 * len(tests)


def test_full_mimii(tmp_path: Path) -> None:
    (clips,) = find_clips(write_mimii(tmp_path / "-6_dB_valve")).values()
    assert {_about(clip) for clip in clips} == {
        ("valve", machine_id, label, "unsplit")
        for machine_id in ("id_00", "id_06")
        for label in (0, 1)
    }
    assert clips[0].name == "valve/id_00/abnormal/00000000.wav"


@pytest.mark.parametrize("write", [write_dcase2020, write_dcase2021, write_mimii])
def test_the_root_may_be_the_type_its_parent_or_its_grandparent(
    tmp_path: Path, write: object
) -> None:
    assert callable(write)
    write(tmp_path / "data" / "inner", "press")
    homes = [tmp_path / "data" / "inner" / "press", tmp_path / "data" / "inner", tmp_path / "data"]
    seen = [[(clip.path, *_about(clip)) for clip in find_clips(home)["press"]] for home in homes]
    assert seen[0] == seen[1] == seen[2]


def test_a_relative_root_knows_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_dcase2020(tmp_path) / "fan" / "train")
    assert list(find_clips(Path(".."))) == list(find_clips(Path())) == ["fan"]


def test_the_order_is_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_wav(tmp_path / "fan" / "train" / f"normal_id_{name}_1.WAV")
    assert [clip.machine_id for clip in find_clips(tmp_path)["fan"]] == ["id_a", "id_b", "id_c"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write_dcase2020(tmp_path / "disk")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fan").symlink_to(tmp_path / "disk" / "fan")
    (tmp_path / "disk" / "fan" / "back").symlink_to(tmp_path / "disk" / "fan")
    assert len(find_clips(tmp_path / "data")["fan"]) == 14


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    write_dcase2020(tmp_path)
    write_wav(tmp_path / "fan" / "train" / "._normal_id_00_00000000.wav")
    write_wav(tmp_path / ".unpacking" / "fan" / "train" / "normal_id_00_00000009.wav")
    (tmp_path / "fan" / "README.md").write_text("not a clip")
    assert len(find_clips(tmp_path)["fan"]) == 14


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere: no such folder"):
        find_clips(tmp_path / "nowhere")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"a\.wav: must be a folder"):
        find_clips(write_wav(tmp_path / "a.wav"))


def test_a_root_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no WAV file; known layouts:.*DCASE 2020"):
        find_clips(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "fan/train/motor_3.wav",
        "fan/normal_id_00_00000000.wav",
        "fan/test/id_00_00000000.wav",
        "fan/test/normal_id_left_1_00000000.wav",  # else one machine with id_left_2
        "fan/test/section_00_source_test_0000.wav",
        "fan/id_00/broken/00000000.wav",
        "loose.wav",
    ],
)
def test_a_clip_of_no_known_layout_is_named(tmp_path: Path, name: str) -> None:
    write_dcase2020(tmp_path)
    write_wav(tmp_path / name)
    with pytest.raises(ManifestError) as refusal:
        find_clips(tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / name}: fits no known layout")
    assert "DCASE 2020" in message
    assert "MIMII" in message
    assert "\n" not in message


def test_an_anomaly_among_the_training_clips_is_refused(tmp_path: Path) -> None:
    bad = write_wav(write_dcase2020(tmp_path) / "fan" / "train" / "anomaly_id_00_00000007.wav")
    with pytest.raises(ManifestError, match=f"{bad}: a train folder must hold normal clips only"):
        find_clips(tmp_path)


@pytest.mark.parametrize("name", [b"fan/train/normal_id_00_L\xfc.wav", b"L\xfc/id_00/normal/1.wav"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, name: bytes) -> None:
    write_dcase2020(tmp_path)
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(ManifestError, match=r"L\\udcfc.*: .* must be UTF-8: rename it") as refusal:
        find_clips(tmp_path)
    str(refusal.value).encode()  # can be printed


def test_one_recording_at_two_noise_levels_is_refused(tmp_path: Path) -> None:
    for snr in ("0_dB_valve", "6_dB_valve"):
        write_mimii(tmp_path / snr)
    with pytest.raises(
        ManifestError, match=r"0_dB_valve/valve and .*6_dB_valve/valve: .*one folder"
    ):
        find_clips(tmp_path)
    assert len(find_clips(tmp_path / "6_dB_valve")["valve"]) == 16


def test_real_recordings(tmp_path: Path) -> None:
    found = find_clips(real_clips() / "dcase2020-mini")
    assert {name: len(clips) for name, clips in found.items()} == {
        "fan": 28,
        "pump": 25,
        "slider": 55,
        "valve": 26,
    }
    ids = {clip.machine_id for clips in found.values() for clip in clips}
    assert ids == {"id_00", "id_02", "id_04", "id_06"}
    (mimii,) = find_clips(real_clips() / "mimii-mini").values()
    assert [clip.label for clip in mimii] == [1, 1, 1, 0, 0, 0]
