"""What a search decides depends on no test clip, and this test would notice if it did.

A small search runs through the real parts that decide: trials on a worker, the best of them, their
fresh seeds, the winner. It must come out the same to the last bit whatever the test clips hold, and
none of them may be touched. Then each of several mutants, who peep, must be caught.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import TrialState
from torch import Tensor

from mimimi_core import checkpoint, training
from mimimi_core.crops import Crops
from mimimi_core.pack import Pack
from mimimi_core.training import Training, objective_of
from search.config import SpaceFile
from search.confirmation import finalists, find_winner
from search.fresh_seeds import train_seeds
from search.launch import checkpoint_name, worker_config
from search.shared_files import SharedFiles
from search.trainable import CHECKPOINT, TrialRunner
from tests.model_fixtures import resplit, tone_pack
from tests.study_fixtures import new_study

Patch = pytest.MonkeyPatch
SPACE = SpaceFile.model_validate(
    {
        "study": {"trials": 2, "epochs": 2},
        "confirmation": {"top": 2, "seeds": 1},
        "parameters": {
            "train.lr": {"kind": "float", "low": 1e-3, "high": 1e-2, "log": True},
            "train.batch_size": {"kind": "fixed", "value": 8},
            "train.precision": {"kind": "fixed", "value": "fp32"},
            "network.channels": {"kind": "fixed", "value": 2},
            "network.depth": {"kind": "fixed", "value": 3},
            "frontend.n_fft": {"kind": "fixed", "value": 64},
            "frontend.hop": {"kind": "fixed", "value": 32},
            "frontend.n_frames": {"kind": "fixed", "value": 8},
            "augment.mixing": {"kind": "fixed", "value": True},
        },
    }
)
RESOURCES = {"cpu": 1.0, "gpu": 0.0}


class TestClipReadError(Exception):
    """The samples of a test clip were asked for."""

    __test__ = False


def search(pack: Pack, folder: Path) -> dict[str, Any]:
    """All that a search reports and decides before it opens the test."""
    study = new_study(machine_type=pack.machine_type, space=SPACE, objective=objective_of(pack))
    told: dict[str, Any] = {"objective": study.objective}

    files = SharedFiles(folder.parent)
    stand_in = folder / "pack.arrow"  # whoever opens it is given `pack`
    folder.mkdir(parents=True, exist_ok=True)
    stand_in.touch()

    def config_of(number: int, place: str, seed: int) -> dict[str, Any]:
        return worker_config(
            study,
            number,
            SPACE,
            RESOURCES,
            files=files,
            pack=str(stand_in),
            checkpoint=place,
            seed=seed,
        )

    for _ in range(SPACE.study.trials):
        number = study.ask().number
        place = checkpoint_name(files, folder, pack.machine_type, number)
        runner = TrialRunner(config_of(number, place, study.train_seed(number)))
        for epoch in range(1, SPACE.study.epochs + 1):
            result = runner.step()
            assert "failure" not in result, result["failure"]
            told[f"trial {number} epoch {epoch}"] = timeless(result["metrics"])
            study.record_epoch(number, epoch, result["metrics"], result["objective"])
        study.finish(number, TrialState.COMPLETE, value=result["objective"])
        told[f"trial {number} weights"] = weights(place)
    told["finalists"] = finalists(study.trials(), SPACE.confirmation.top)
    for number in told["finalists"]:
        place = str(folder / "confirmation" / pack.machine_type / f"{number:05d}-0")
        config = config_of(number, place, study.train_seed(number, 0))
        (note,) = train_seeds([config], hang_s=math.inf, gpu=0.0)
        assert "failure" not in note, note["failure"]
        study.note(f"confirmation/{number}/0", note)
        told[f"fresh seed of {number}"] = (note["objective"], timeless(note["metrics"]))
        told[f"fresh weights of {number}"] = weights(place)
    winner = find_winner(study, SPACE, folder)
    assert winner is not None
    told["winner"] = (winner.number, winner.objectives)
    return told


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without how long they took."""
    return {name: value for name, value in metrics.items() if name != "seconds"}


def weights(folder: str) -> dict[str, bytes]:
    """The bits of a saved network."""
    state = checkpoint.load(Path(folder, CHECKPOINT))
    return {name: tensor.numpy().tobytes() for name, tensor in state["network"].items()}


def noisy(pack: Pack) -> Pack:
    """Test clips of loud noise."""
    samples, rng = pack.samples.copy(), np.random.default_rng(0)
    for clip in pack.select("test"):
        start, length = pack.starts[clip], pack.lengths[clip]
        samples[start : start + length] = rng.integers(-32768, 32767, length)
    return dataclasses.replace(pack, samples=samples)


def relabelled(pack: Pack) -> Pack:
    """Normal and anomalous test clips swapped."""
    labels = np.where(pack.splits == "test", 1 - pack.labels, pack.labels)
    return dataclasses.replace(pack, labels=labels)


def unlabelled(pack: Pack) -> Pack:
    """All test clips normal."""
    return dataclasses.replace(pack, labels=np.where(pack.splits == "test", 0, pack.labels))


def without_anomalies_in_val(pack: Pack) -> Pack:
    """Only the test has anomalies, so nothing but a label-free objective is left."""
    return resplit(pack, np.flatnonzero((pack.splits == "val") & (pack.labels == 1)), "test")


PACKS: dict[str, Callable[[Pack], Pack]] = {
    "labelled": lambda pack: pack,
    "without anomalies in val": without_anomalies_in_val,
}


def require_equal_whatever_the_test_holds(pack: Pack, folder: Path) -> None:
    """Search with the pack as it is, then with other test clips."""
    expected = None
    for change in (dataclasses.replace, noisy, relabelled, unlabelled):
        changed = change(pack)
        with Patch.context() as patch:
            patch.setattr("search.trainable.open_pack", lambda path, pack=changed: pack)
            found = search(changed, folder / change.__name__)
        expected = expected or found
        assert found == expected, "the test clips made a difference"


def require_test_clips_untouched(pack: Pack, folder: Path) -> None:
    """Search while the samples of the test clips cannot be had."""
    forbidden = torch.from_numpy(pack.select("test"))
    read = Crops.at

    def at(crops: Crops, clips: Tensor, offsets: Tensor) -> Tensor:
        if torch.isin(clips, forbidden).any():
            raise TestClipReadError("a test clip was read")
        return read(crops, clips, offsets)

    with Patch.context() as patch:
        patch.setattr(Crops, "at", at)
        patch.setattr("search.trainable.open_pack", lambda path: pack)
        search(pack, folder)


CHECKS: dict[Callable[[Pack, Path], None], str] = {  # and what they say of a search that peeps
    require_equal_whatever_the_test_holds: "the test clips made a difference",
    require_test_clips_untouched: "a test clip was read",
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", PACKS)
def test_a_search_decides_without_the_test(
    check: Callable[[Pack, Path], None], kind: str, tmp_path: Path
) -> None:
    check(PACKS[kind](tone_pack()), tmp_path)


def peep(patch: Patch, split: str) -> None:
    """Whoever asks for a split gets the test clips as well."""
    select = Pack.select

    def mutant(pack: Pack, wanted: str, label: int | None = None) -> np.ndarray:
        clips = select(pack, wanted, label)
        return np.sort(np.append(clips, select(pack, "test", label))) if wanted == split else clips

    patch.setattr(Pack, "select", mutant)


def hold_out_test_normals(patch: Patch) -> None:
    """The label-free figures see normals of the test."""
    held_out = training.held_out_normals
    patch.setattr(
        training,
        "held_out_normals",
        lambda pack: np.append(held_out(pack), pack.select("test", label=0)),
    )


def report_the_test(patch: Patch) -> None:
    """A trial reports one more figure, which nobody need look at."""
    run_epoch = Training.run_epoch

    def mutant(self: Training) -> dict[str, float]:
        return run_epoch(self) | {"test_auc": self.auc_report("test").auc or 0.0}

    patch.setattr(Training, "run_epoch", mutant)


def confirm_on_the_test(patch: Patch) -> None:
    """Trials are innocent, but fresh seeds are compared by their test AUC."""

    def open_training(config: dict[str, Any], *args: Any) -> tuple[Training, dict[str, float]]:
        from search.trainable import open_training

        opened, metrics = open_training(config, *args)
        finish_epoch = opened.finish_epoch

        def mutant(loss: Tensor) -> dict[str, float]:
            return finish_epoch(loss) | {opened.objective: opened.auc_report("test").auc or 0.0}

        opened.finish_epoch = mutant  # type: ignore[method-assign]
        return opened, metrics

    patch.setattr("search.fresh_seeds.open_training", open_training)


MUTANTS: dict[str, Callable[[Patch], None]] = {
    "validates on test clips": lambda patch: peep(patch, "val"),
    "trains on test normals": lambda patch: peep(patch, "train"),
    "holds out test normals": lambda patch: peep(patch, "holdout"),
    "measures label-free figures on test normals": hold_out_test_normals,
    "reports a test figure": report_the_test,
    "confirms on the test": confirm_on_the_test,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_search_that_peeps_is_caught(
    check: Callable[[Pack, Path], None], mutant: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    pack = tone_pack()
    MUTANTS[mutant](monkeypatch)
    with pytest.raises(AssertionError, match=CHECKS[check]):
        check(pack, tmp_path)
