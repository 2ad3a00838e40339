"""Every kind of network on every input it can read, for one epoch of recordings: real, embedded."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from mimimi_core import synth
from mimimi_core.clips import find_clips
from mimimi_core.config import ID_FREE, INPUTS, FrontendKind, NetworkKind, TrialConfig
from mimimi_core.pack import Pack, open_pack, pack_clips
from mimimi_core.training import Training
from tests.audio_fixtures import real_clips
from tests.model_fixtures import CPU

EVERY_INPUT = [(kind, frontend) for kind, inputs in INPUTS.items() for frontend in inputs]


@pytest.fixture(scope="module", params=["embedded", "real"])
def pack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("clips")
    if request.param == "real":
        clips = find_clips(real_clips() / "dcase2020-mini")["fan"]
    else:
        few = [("train", "normal", 5), ("test", "normal", 6), ("test", "anomaly", 6)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(synth, "CLIPS_PER_ID", few)
            clips = find_clips(synth.write_synthetic(folder, ["valve"]))["valve"]
    return open_pack(pack_clips(clips, folder / "packs"))


def _config(kind: NetworkKind, frontend: FrontendKind) -> TrialConfig:
    """Small in all but the frames of a crop, which are the paper's 64."""
    params: dict[str, Any] = {
        "network.kind": kind,
        "network.channels": 2,
        "network.depth": 4,
        "frontend.kind": frontend,
        "frontend.n_fft": 256,
        "frontend.hop": 256,
        "frontend.n_mels": 32,
        "train.epochs": 1,
        "train.batch_size": 8,
    }
    return TrialConfig.from_params(params)


def _values(training: Training) -> torch.Tensor:
    """All parameters and buffers in a row."""
    state = training.network.state_dict().values()
    return torch.cat([value.double().flatten() for value in state])


@pytest.mark.parametrize(("kind", "frontend"), EVERY_INPUT)
def test_an_epoch_of_recordings_trains(
    pack: Pack, kind: NetworkKind, frontend: FrontendKind
) -> None:
    training = Training(_config(kind, frontend), pack, CPU)
    before = _values(training)
    metrics = training.run_epoch()
    assert math.isfinite(metrics["train_loss"])
    assert 0 <= metrics["val_auc"] <= 1
    assert (_values(training) != before).any()
    names_ids = kind not in ID_FREE  # others score a clip the same under each
    assert ("id_swap_auc" in metrics) is names_ids
    found = training.scores(pack.select("test"))
    assert found.nll.shape == (len(pack.select("test")), len(pack.machine_ids))
    assert np.isfinite(found.nll).all()
    assert (np.ptp(found.nll, axis=1) > 0).all() == names_ids
