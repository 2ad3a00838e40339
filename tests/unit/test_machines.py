import inspect

import numpy as np
import pytest

from mimimi_core.machines import (
    FAULTS,
    JITTER_RAD,
    MACHINE_IDS,
    MACHINES,
    SAMPLE_RATE,
    fan,
    machine_clip,
    record,
    whine,
)

LINES_HZ = 15.625 * (50 + 27 * np.arange(8))
# Every 8000th sample of a clip of id_02 with generator 1, of version 1 of the embedded data set.
VERSION_1: dict[tuple[str, str | None], list[int]] = {
    ("fan", None): [-1181, -900, -473, -619, 710, 214, 129, -1861],
    ("fan", "imbalance"): [-52, -1611, -44, -1143, 958, -82, 573, -2095],
    ("fan", "blade"): [480, -986, 79, -374, 235, 491, 228, -2202],
    ("fan", "drive"): [-1754, -1195, 1105, 266, 191, 426, 317, -1442],
    ("pump", None): [-731, 661, 1689, 1320, -334, -694, 1360, -279],
    ("pump", "cavitation"): [-1752, 153, 1685, 572, 450, -902, 2333, 705],
    ("pump", "bearing"): [-704, 705, 1751, 1513, -785, -672, 1289, -279],
    ("pump", "surge"): [-1418, 624, 1537, 553, -302, -234, 2179, -532],
    ("slider", None): [-1592, 864, 170, -655, 208, 963, -96, 413],
    ("slider", "rub"): [-1598, 811, -334, -1514, -602, 1492, 171, 459],
    ("slider", "rattle"): [-1540, 998, 167, -643, 211, 915, -108, 375],
    ("slider", "stick"): [-1148, 531, 589, 500, -487, 1233, -10, -154],
    ("valve", None): [520, -722, -262, 465, 191, 330, 487, 212],
    ("valve", "leak"): [351, -845, -464, 474, 242, 616, 470, 49],
    ("valve", "late"): [369, -744, -82, 367, 106, -327, 374, 74],
    ("valve", "weak"): [520, -722, -262, 465, 191, 332, 487, 208],
}


@pytest.mark.parametrize(("machine_type", "fault"), VERSION_1)
def test_the_clips_are_those_of_version_1(machine_type: str, fault: str | None) -> None:
    clip = machine_clip(machine_type, "id_02", np.random.default_rng(1), fault)
    # another processor's sine may round a sample the other way
    np.testing.assert_allclose(clip[::8000], VERSION_1[machine_type, fault], rtol=0, atol=1)


def test_every_sound_is_pinned() -> None:
    assert set(VERSION_1) == {(kind, fault) for kind in FAULTS for fault in (None, *FAULTS[kind])}


def test_the_embedded_drive_fault_has_the_default_jitter() -> None:
    assert JITTER_RAD == inspect.signature(fan).parameters["jitter_rad"].default == 0.25
    ours, theirs = np.random.default_rng(2), np.random.default_rng(2)
    clip = record(ours, fan(MACHINES["fan"][3], ours, "drive", 0.25))
    assert np.array_equal(clip, machine_clip("fan", MACHINE_IDS[3], theirs, "drive"))


def _phases(sound: np.ndarray, detune_hz: float) -> np.ndarray:
    """Phase of each line against a steady one, (8, samples away from the ends), rad."""
    hz = np.fft.fftfreq(len(sound), 1 / SAMPLE_RATE)
    spectrum = np.fft.fft(sound)
    time = np.arange(len(sound)) / SAMPLE_RATE
    phases = []
    for line_hz in LINES_HZ + detune_hz:
        alone = np.fft.ifft(np.where(np.abs(hz - line_hz) < 200, spectrum, 0))
        phases.append(np.unwrap(np.angle(alone * np.exp(-2j * np.pi * line_hz * time))))
    inner = np.array(phases)[:, 1000:-1000]
    assert inner.shape[1] > 60_000
    return inner


@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_the_jitter_is_the_spread_of_the_phase_step_of_a_hop(jitter: float) -> None:
    machine = MACHINES["fan"][0]
    steps = [
        np.diff(_phases(whine(machine, np.random.default_rng(seed), jitter), -4.5)[:, ::512])
        for seed in range(3)
    ]
    assert np.std(steps) == pytest.approx(jitter, rel=0.05, abs=0.005)
    lines = np.array(steps).swapaxes(0, 1).reshape(8, -1)
    if jitter:
        others = np.corrcoef(lines)[~np.eye(8, dtype=bool)]
        assert np.abs(others).max() < 0.2  # each line walks by itself


def test_a_healthy_whine_is_steady() -> None:
    assert (
        np.ptp(_phases(whine(MACHINES["fan"][3], np.random.default_rng(0)), 4.5), axis=1).max()
        < 0.02
    )


def test_clips_of_one_generator_differ_in_the_jitter_alone() -> None:
    machine = MACHINES["fan"][1]
    sounds = [fan(machine, np.random.default_rng(7), "drive", jitter) for jitter in (0.0, 0.25)]
    power = np.abs(np.fft.rfft(sounds[1] - sounds[0])) ** 2
    hz = np.fft.rfftfreq(len(sounds[0]), 1 / SAMPLE_RATE)
    near = np.abs(hz[:, None] - LINES_HZ).min(1) < 50
    assert power[near].sum() > 0.99 * power.sum()
