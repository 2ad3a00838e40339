"""Two searches with the same seed: the same trials to the last bit, also with several workers."""

from pathlib import Path
from typing import Any

import pytest

from mimimi_core.clips import find_clips
from mimimi_core.pack import pack_clips
from search.config import SpaceFile
from search.launch import run_trials
from search.space import all_params
from search.storages import open_storage
from tests.audio_fixtures import write_dcase2020
from tests.study_fixtures import new_study

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

RESOURCES = {"cpu": 1.0, "gpu": 0.0}
PARAMETERS: dict[str, Any] = {
    "network.channels": {"kind": "int", "low": 2, "high": 4},
    "network.depth": {"kind": "fixed", "value": 3},
    "frontend.n_fft": {"kind": "fixed", "value": 64},
    "frontend.hop": {"kind": "fixed", "value": 32},
    "frontend.n_frames": {"kind": "fixed", "value": 8},
    "augment.noise": {"kind": "bool"},
    "train.lr": {"kind": "float", "low": 1e-3, "high": 1e-1, "log": True},
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dcase2020(folder, n_train=12, n_test=10)
    return pack_clips(find_clips(folder)["fan"], folder / "packs")


@pytest.mark.parametrize(
    "at_once", [{"parallel": 1}, {"parallel": 2, "deterministic": True}], ids=["one", "two"]
)
def test_the_same_seed_gives_the_same_search(
    pack: Path, tmp_path: Path, at_once: dict[str, Any]
) -> None:
    space = SpaceFile.model_validate(
        {
            "study": {"trials": 6, "epochs": 3, "seed": 5} | at_once,
            "sampler": {"name": "gp", "startup_trials": 2},
            "scheduler": {"name": "asha", "reduction_factor": 2.0},
            "parameters": PARAMETERS,
        }
    )
    histories = []
    for name in ("a", "b"):
        folder = tmp_path / name
        with open_storage(folder) as storage:
            study = new_study(
                storage,
                space=space,
                seed=space.study.seed,
                lag=space.study.parallel if space.study.deterministic else None,
            )
            assert run_trials(
                {"fan": study}, space, folder=folder, packs={"fan": pack}, resources=RESOURCES
            )
            histories.append(
                [
                    (trial.number, trial.state, all_params(trial), trial.intermediate_values)
                    for trial in study.trials()
                ]
            )
    assert len(histories[0]) == 6
    assert histories[0] == histories[1]
