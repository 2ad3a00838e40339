from pathlib import Path

import numpy as np
import pytest
import torch

from mimimi_core.clips import find_clips
from mimimi_core.config import FrontendConfig
from mimimi_core.crops import Crops, window_offsets
from mimimi_core.pack import open_pack, pack_clips
from tests.audio_fixtures import noise, write_dcase2020
from tests.model_fixtures import CPU

CONFIG = FrontendConfig(n_fft=64, hop=32, n_frames=8)
N = CONFIG.crop_samples


def _ramps(*lengths: int) -> list[np.ndarray]:
    """Clip c counts up from 10,000 c, so a sample tells its clip and its place."""
    return [10_000 * c + np.arange(n, dtype=np.int16) for c, n in enumerate(lengths)]


def _crop(crops: Crops, clip: int, offset: int) -> np.ndarray:
    found = crops.at(torch.tensor([clip]), torch.tensor([offset]))[0]
    assert found.dtype == torch.float32
    return (found * 32768).numpy()


def test_a_crop_is_a_slice_of_its_clip() -> None:
    clips = _ramps(800, 400, 500)
    crops = Crops.from_waveforms(clips, CONFIG, CPU)
    for clip, offset in ((0, 0), (1, 37), (2, 500 - N), (0, 800 - N)):
        np.testing.assert_array_equal(_crop(crops, clip, offset), clips[clip][offset : offset + N])


def test_full_scale_is_one() -> None:
    extremes = np.array([-32768, 32767] * 200, dtype=np.int16)
    crop = Crops.from_waveforms([extremes], CONFIG, CPU).at(torch.tensor([0]), torch.tensor([0]))
    assert crop.min() == -1
    assert 0.9999 < crop.max() < 1


def test_a_short_clip_is_repeated_until_a_crop_fits() -> None:
    clips = _ramps(100, 800, N, 1)
    crops = Crops.from_waveforms(clips, CONFIG, CPU)
    assert crops.lengths.tolist() == [N, 800, N, N]
    for clip in (0, 3):
        repeated = np.tile(clips[clip], N)[:N]
        np.testing.assert_array_equal(_crop(crops, clip, 0), repeated)
    np.testing.assert_array_equal(_crop(crops, 1, 500), clips[1][500 : 500 + N])
    np.testing.assert_array_equal(_crop(crops, 2, 0), clips[2])


def test_random_crops_start_at_every_frame_inside_their_clip_and_nowhere_else() -> None:
    lengths = (800, N, N + 31, N + 32)
    crops = Crops.from_waveforms(_ramps(*lengths)[:3] + [_ramps(lengths[3])[0]], CONFIG, CPU)
    generator = torch.Generator().manual_seed(0)
    last_frames = (16, 0, 0, 1)
    for clip, last in enumerate(last_frames):
        drawn = crops.random(torch.full((1000,), clip), generator)
        first = drawn[:, 0] * 32768 - (10_000 * clip if clip < 3 else 0)
        assert (first % CONFIG.hop == 0).all()
        frames, counts = (first // CONFIG.hop).long().unique(return_counts=True)
        assert frames.tolist() == list(range(last + 1))
        assert counts.min() > 0.5 * 1000 / (last + 1)  # none is rare
        assert (drawn[:, -1] - drawn[:, 0]).mul(32768).eq(N - 1).all()  # one piece of the clip


def test_the_generator_decides_the_crops() -> None:
    crops = Crops.from_waveforms(_ramps(800, 800), CONFIG, CPU)
    clips = torch.tensor([0, 1] * 20)

    def draw(seed: int) -> torch.Tensor:
        return crops.random(clips, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_windows_of_a_ten_second_clip() -> None:
    offsets = window_offsets(160_000, FrontendConfig())
    assert [offset // 512 for offset in offsets] == [0, 64, 128, 192, 247]
    assert all(offset % 512 == 0 for offset in offsets)


@pytest.mark.parametrize("n_samples", [1, N - 1, N, N + 31, N + 32, N + 255, N + 256, 800, 16_000])
def test_windows_cover_every_frame_of_a_clip(n_samples: int) -> None:
    offsets = window_offsets(n_samples, CONFIG)
    assert offsets == sorted(set(offsets))
    assert max(offsets) + N <= max(n_samples, N)
    covered = {o // CONFIG.hop + t for o in offsets for t in range(CONFIG.n_frames)}
    n_frames = (max(n_samples, N) - CONFIG.n_fft) // CONFIG.hop + 1
    assert covered == set(range(n_frames))
    assert len(offsets) == -(-n_frames // CONFIG.n_frames)  # no more windows than it takes


def test_a_pack_on_disk_is_cropped_where_it_lies(tmp_path: Path) -> None:
    clips = find_clips(write_dcase2020(tmp_path / "data"))["fan"]
    pack = open_pack(pack_clips(clips, tmp_path / "packs"))
    before = torch.from_numpy(pack.samples.copy())
    crops = Crops.from_pack(pack, CONFIG, CPU)
    start, length = int(pack.starts[3]), int(pack.lengths[3])
    np.testing.assert_array_equal(
        _crop(crops, 3, length - N), before[start + length - N : start + length]
    )
    assert crops._samples.data_ptr() == pack.samples.__array_interface__["data"][0]  # not copied


def test_clips_of_a_pack_that_are_too_short_are_repeated(tmp_path: Path) -> None:
    clips = find_clips(write_dcase2020(tmp_path / "data"))["fan"]  # of 800 samples each
    pack = open_pack(pack_clips(clips, tmp_path / "packs"))
    long = FrontendConfig(n_fft=512, hop=256, n_frames=8)
    crops = Crops.from_pack(pack, long, CPU)
    start = int(pack.starts[2])
    clip = pack.samples[start : start + 800]
    expected = np.tile(clip, 4)[: long.crop_samples]
    np.testing.assert_array_equal(_crop(crops, 2, 0), expected)


def test_crops_can_be_cut_without_the_samples_of_other_clips() -> None:
    clips = [noise(n, 400)[:, 0] for n in range(3)]
    alone = Crops.from_waveforms([clips[1]], CONFIG, CPU)
    together = Crops.from_waveforms(clips, CONFIG, CPU)
    np.testing.assert_array_equal(_crop(alone, 0, 64), _crop(together, 1, 64))
