from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mimimi_core.clips import Clip, Part
from mimimi_core.splits import Split, assign_splits, clip_digest


def _clips(n: int, part: Part, label: int = 0, machine_id: str = "id_00") -> list[Clip]:
    return [
        Clip(
            path=Path(f"/data/{n}.wav"),
            name=f"{machine_id}/{part}/{label}/{n}.wav",
            machine_type="fan",
            machine_id=machine_id,
            label=label,
            part=part,
        )
        for n in range(n)
    ]


def _digests(clips: list[Clip]) -> list[int]:
    return [clip_digest(clip.name.encode()) for clip in clips]


def _count(splits: list[Split]) -> dict[str, int]:
    return dict(Counter(splits))


def test_the_digest_is_64_bits_of_blake2b() -> None:
    assert clip_digest(b"") == 0xE4A6A0577479B2B4
    assert clip_digest(b"a") != clip_digest(b"b")


def test_labelled_clips_are_cut_in_about_half_per_id_and_label() -> None:
    for label in (0, 1):
        clips = _clips(400, "labelled", label)
        counts = _count(assign_splits(clips, _digests(clips)))
        assert counts.keys() == {"val", "test"}
        assert 160 < counts["val"] < 240


@pytest.mark.parametrize(
    ("n", "held_out"), [(1, 0), (9, 0), (10, 2), (29, 2), (40, 4), (1000, 100)]
)
def test_a_tenth_of_the_train_normals_is_held_out_two_at_least_none_of_few(
    n: int, held_out: int
) -> None:
    clips = [*_clips(n, "train"), *_clips(40, "train", 0, "id_02")]
    splits = assign_splits(clips, _digests(clips))
    assert splits[:n].count("holdout") == held_out
    assert splits[:n].count("train") == n - held_out
    assert splits[n:].count("holdout") == 4


def test_a_clip_keeps_its_split_when_others_are_added() -> None:
    clips = [*_clips(50, "labelled"), *_clips(50, "labelled", 1), *_clips(50, "train")]
    added = [*_clips(70, "labelled", 1), *clips, *_clips(300, "labelled", 0, "id_09")]
    before = assign_splits(clips, _digests(clips))
    after = assign_splits(added, _digests(added))
    assert after[70 : 70 + len(clips)] == before


def test_a_labelled_clip_keeps_its_split_when_train_clips_are_added() -> None:
    clips = [*_clips(50, "labelled"), *_clips(50, "labelled", 1)]
    added = [*clips, *_clips(200, "train")]
    before = assign_splits(clips, _digests(clips))
    assert assign_splits(added, _digests(added))[: len(clips)] == before


def test_the_order_of_the_clips_does_not_matter() -> None:
    clips = [*_clips(9, "unsplit"), *_clips(3, "unsplit", 1), *_clips(9, "train", 0, "id_02")]
    digests = _digests(clips)
    order = np.random.default_rng(0).permutation(len(clips))
    shuffled = assign_splits([clips[i] for i in order], [digests[i] for i in order])
    assert shuffled == [assign_splits(clips, digests)[i] for i in order]


@pytest.mark.parametrize("part", ["labelled", "train", "unsplit"])
def test_two_copies_of_a_recording_share_a_split(part: Part) -> None:
    clips = [*_clips(40, part), *_clips(10, "unsplit", 1)]
    digests = _digests(clips[:20]) * 2 + _digests(clips[40:])
    splits = assign_splits(clips, digests)
    assert splits[:20] == splits[20:40]


@pytest.mark.parametrize("machine_id", ["id_00", "id_02"])
def test_a_train_clip_whose_copy_is_labelled_is_left_out_and_said(
    machine_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy under another id is the same recording, too."""
    clips = [*_clips(20, "labelled"), *_clips(20, "train", 0, machine_id)]
    digests = _digests(clips)
    digests[22], digests[25] = digests[:2]
    splits = assign_splits(clips, digests)
    assert [i for i, split in enumerate(splits) if split == "unused"] == [22, 25]
    assert set(splits[:20]) == {"val", "test"}
    assert splits[20:].count("holdout") == 2  # of the 18 that are left
    assert f"left out, as labelled ones are copies of them: 2, such as {clips[22].name}" in (
        caplog.text
    )


def test_a_normal_that_is_a_copy_of_an_anomaly_does_not_train() -> None:
    clips = [*_clips(40, "unsplit"), *_clips(3, "unsplit", 1)]
    digests = _digests(clips)
    largest = int(np.argmax(digests[:40]))
    digests[40] = digests[largest]
    assert assign_splits(clips, digests)[largest] == "unused"


def test_mimii_labels_as_many_normals_as_anomalies() -> None:
    clips = [
        *_clips(100, "unsplit"),
        *_clips(30, "unsplit", 1),
        *_clips(80, "unsplit", 0, "id_02"),
        *_clips(10, "unsplit", 1, "id_02"),
    ]
    digests = _digests(clips)
    splits = assign_splits(clips, digests)
    for machine_id, n_anomalies in (("id_00", 30), ("id_02", 10)):
        mine = [i for i, clip in enumerate(clips) if clip.machine_id == machine_id]
        normals = [i for i in mine if not clips[i].label]
        labelled = [i for i in normals if splits[i] in ("val", "test")]
        assert len(labelled) == n_anomalies
        rest = set(normals) - set(labelled)
        assert max(digests[i] for i in labelled) < min(digests[i] for i in rest)
        assert all(splits[i] in ("val", "test") for i in mine if clips[i].label)


def test_mimii_keeps_half_of_its_normals_for_training() -> None:
    clips = [*_clips(5, "unsplit"), *_clips(20, "unsplit", 1)]
    splits = assign_splits(clips, _digests(clips))
    assert sum(split in ("train", "holdout") for split in splits[:5]) == 3
    assert "train" in splits[:5]


def test_a_type_without_anomalies_only_trains() -> None:
    clips = _clips(20, "unsplit")
    assert set(assign_splits(clips, _digests(clips))) <= {"train", "holdout"}
