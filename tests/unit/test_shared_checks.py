"""Whether nodes can use the shared storage, and what workers bring home from it."""

from pathlib import Path

import pytest
import ray
import torch
from pyarrow import fs

from mimimi_core.clips import find_clips
from mimimi_core.config import TrialConfig
from mimimi_core.detector import Detector
from mimimi_core.pack import open_pack, pack_clips
from mimimi_core.training import Training
from search import pack_cache, shared_files
from search.conclude import _evaluate
from search.finalists import _nll
from search.shared_checks import StorageStopper, _probe, probe_nodes
from search.shared_files import SharedFiles, SharedFilesError
from search.trainable import CHECKPOINT, TrialRunner
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import TINY_PARAMS
from tests.store_fixtures import Faulty

PARAMS = {
    **TINY_PARAMS,
    "train.epochs": 1,
    "train.seed": 0,
}


@pytest.fixture(params=["folder", "store"])
def files(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SharedFiles:
    if request.param == "folder":
        return SharedFiles(tmp_path / "runs")
    store = fs.PyFileSystem(Faulty())
    monkeypatch.setattr(shared_files, "_connect", lambda root: (store, "bucket/prefix"))
    monkeypatch.setattr(pack_cache, "_checked", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return SharedFiles("s3://bucket/prefix")


def test_a_worker_hands_over_the_winner_s_detector_and_figures(
    files: SharedFiles, tmp_path: Path
) -> None:
    clips = find_clips(write_dcase2020(tmp_path / "data", n_train=12, n_test=6))["fan"]
    pack = pack_clips(clips, tmp_path / "runs" / "packs")
    name, folder = files.share(pack), files.name("s", "checkpoints", "fan", "00000")
    config = {"params": PARAMS, "objective": "val_auc", "threads": 1}
    told = TrialRunner({**config, "files": files.root, "pack": name, "checkpoint": folder}).step()
    assert told["is_final"]

    state = f"{folder}/{CHECKPOINT}"
    evaluation, model, figures = _evaluate(files.root, [state], name, 1)
    assert evaluation.val.auc == told["objective"]
    assert "per_id.csv" in figures
    assert len([drawn for drawn in figures if drawn.endswith(".png")]) >= 2
    for file, content in model.items():
        (tmp_path / file).write_bytes(content)
    assert Detector.load(tmp_path).machine_type == "fan"
    assert _nll(files.root, state, name, 1).shape == (len(open_pack(pack).names), 2)


def test_a_winner_judges_alone_where_another_network_scores_all_clips_alike(
    files: SharedFiles, tmp_path: Path
) -> None:
    clips = find_clips(write_dcase2020(tmp_path / "data", n_train=12, n_test=6))["fan"]
    path = pack_clips(clips, tmp_path / "runs" / "packs")
    states = []
    for seed in (0, 1):
        training = Training(
            TrialConfig.from_params({**PARAMS, "train.seed": seed}), open_pack(path)
        )
        if seed == 1:
            torch.nn.init.zeros_(training.network.total_conv.weight)
        states.append(files.name("s", "confirmation", "fan", f"{seed:05d}-0", CHECKPOINT))
        files.write(states[-1], lambda path, training=training: training.save(path, {}))
    evaluation, _, _ = _evaluate(files.root, states, files.share(path), 1)
    assert evaluation.kinds == ("deep_encoder",)
    alone, _, _ = _evaluate(files.root, states[:1], files.share(path), 1)
    assert evaluation.test == alone.test


@pytest.mark.parametrize("content", [None, b"cut short"])
def test_a_state_that_is_gone_is_named_with_what_to_do(
    files: SharedFiles, tmp_path: Path, content: bytes | None
) -> None:
    clips = find_clips(write_dcase2020(tmp_path / "data", n_train=2, n_test=2))["fan"]
    pack = files.share(pack_clips(clips, tmp_path / "runs" / "packs"))
    state = files.name("s", "confirmation", "fan", "00000-0", CHECKPOINT)

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content or b"")

    if content is not None:
        files.write(state, save)
    wanted = rf"must hold {state}, .*put it back, or choose another --study"
    with pytest.raises(SharedFilesError, match=wanted):
        _evaluate(files.root, [state], pack, 1)
    with pytest.raises(SharedFilesError, match=wanted):
        _nll(files.root, state, pack, 1)


def test_a_node_says_what_it_cannot_see_or_do(
    files: SharedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tmp_path / "runs" / "packs" / "fan-0123456789ab.arrow"
    pack.parent.mkdir(parents=True)
    pack.write_bytes(b"clips")
    name = files.share(pack)
    assert _probe(files.root, [name]) is None
    assert "is not" in str(_probe(files.root, [name.replace("fan-", "pump-")]))


def test_a_cluster_of_one_machine_is_not_asked(
    files: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    probe_nodes(files, {"fan": "no such pack"})


def test_a_search_ends_when_a_trial_was_refused_twice(caplog: pytest.LogCaptureFixture) -> None:
    refusal = "storage: s3://b must let this machine write x"
    losses = {"a": [refusal], "b": [refusal], "c": ["worker lost: gone", "worker lost: gone"]}
    stopper = StorageStopper(losses)
    assert not stopper.stop_all()
    assert not stopper("a", {})
    losses["a"].append(refusal)
    assert stopper.stop_all()
    assert stopper.stop_all()
    assert stopper.is_set
    (said,) = caplog.messages
    assert refusal in said
    assert "repeat the command" in said
