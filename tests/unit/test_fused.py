"""Seeds that are trained as one come out as if each had been trained alone."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimimi_core import checkpoint, fused
from mimimi_core.config import TrialConfig
from mimimi_core.training import NonFiniteLossError, Training
from tests.model_fixtures import AUGMENT_ALL, CPU, Reads, tiny_config, tone_pack
from tests.system_fixtures import SYSTEMS, small_config

SEEDS = (3, 5, 8)
PACK = tone_pack()
FUSED = [name for name in SYSTEMS if fused.can_fuse(small_config(name))]


@pytest.fixture
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also what the network has cast to float32."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def with_seeds(config: TrialConfig, seeds: Sequence[int] = SEEDS) -> list[Training]:
    configs = [
        dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        for seed in seeds
    ]
    return [Training(config, PACK, CPU) for config in configs]


def state_of(training: Training, folder: Path) -> dict[str, Any]:
    """What its checkpoint holds."""
    training.save(folder / "compared.pt", {})
    return checkpoint.load(folder / "compared.pt")


def train_to_the_end(trainings: list[Training]) -> list[dict[str, float]]:
    """Fused, whoever is done leaving; the last metrics of each."""
    last: dict[int, Any] = {}
    while running := [t for t in trainings if not t.is_done]:
        for training, outcome in zip(running, fused.run_epoch(running), strict=True):
            last[id(training)] = outcome
    return [last[id(training)] for training in trainings]


def assert_same(
    found: list[Training], expected: list[Training], folder: Path, close: float = 1e-10
) -> None:
    """Compare all that the checkpoints of each pair hold."""
    for mine, theirs in zip(found, expected, strict=True):
        leaves = [dict(_leaves(state_of(training, folder))) for training in (mine, theirs)]
        assert leaves[0].keys() == leaves[1].keys()
        for name, value in leaves[1].items():
            if isinstance(value, Tensor | float):
                torch.testing.assert_close(leaves[0][name], value, rtol=close, atol=close)
            else:
                assert leaves[0][name] == value, name


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{name}/{key}")
    else:
        yield name, value


@pytest.mark.usefixtures("_in_float64")
@pytest.mark.parametrize("system", FUSED)
def test_every_seed_comes_out_as_if_alone(system: str, tmp_path: Path) -> None:
    config = dataclasses.replace(
        small_config(system, epochs=3, weight_decay=0.01, lr_schedule="cosine"), augment=AUGMENT_ALL
    )
    alone, together = with_seeds(config), with_seeds(config)
    for _ in range(3):
        expected = [training.run_epoch() for training in alone]
        found = fused.run_epoch(together)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-10)
        assert [x["val_auc"] for x in found] == [x["val_auc"] for x in expected]
    losses = [x["train_loss"] for x in found]
    assert len({round(loss, 6) for loss in losses}) == len(SEEDS)
    assert_same(together, alone, tmp_path)


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_the_precision_of_a_search_changes_no_more_than_rounding(
    precision: str, close: float
) -> None:
    config = tiny_config(AUGMENT_ALL, precision=precision)
    expected = [[t.run_epoch() for _ in range(3)][-1] for t in with_seeds(config)]
    together = with_seeds(config)
    found = [fused.run_epoch(together) for _ in range(3)][-1]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=close)


@pytest.mark.usefixtures("_in_float64")
@pytest.mark.parametrize("first_half", ["alone", "fused"])
def test_either_goes_on_where_the_other_left_off(tmp_path: Path, first_half: str) -> None:
    config = tiny_config(AUGMENT_ALL, lr_schedule="cosine")
    expected = with_seeds(config)
    metrics = [[training.run_epoch() for _ in range(4)][-1] for training in expected]

    def advance(trainings: list[Training], way: str) -> list[Any]:
        if way == "fused":
            return fused.run_epoch(trainings)
        return [training.run_epoch() for training in trainings]

    first = with_seeds(config)
    for _ in range(2):
        advance(first, first_half)
    for index, training in enumerate(first):
        training.save(tmp_path / f"{index}.pt", {})
    rest = with_seeds(config)
    for index, training in enumerate(rest):
        training.restore(tmp_path / f"{index}.pt")
    for _ in range(2):
        found = advance(rest, "alone" if first_half == "fused" else "fused")
    for mine, theirs in zip(found, metrics, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-10)
    assert_same(rest, expected, tmp_path)


def test_a_checkpoint_is_laid_out_and_as_small_as_that_of_one_alone(tmp_path: Path) -> None:
    config = tiny_config()
    alone, together = with_seeds(config), with_seeds(config)
    alone[0].run_epoch()
    fused.run_epoch(together)
    sizes, layouts = [], []
    for training in (alone[0], together[0]):
        state = state_of(training, tmp_path)
        sizes.append((tmp_path / "compared.pt").stat().st_size)
        moments = [x for s in state["optimizer"]["state"].values() for x in s.values()]
        tensors = [*state["network"].values(), *moments]
        layouts.append([(x.shape, x.stride(), x.dtype) for x in tensors])
    assert sizes[0] == sizes[1]
    assert layouts[0] == layouts[1]


@pytest.mark.usefixtures("_in_float64")
def test_each_seed_has_its_own_patience(tmp_path: Path) -> None:
    config = tiny_config(lr=0.02, epochs=8, patience=1)
    alone, together = with_seeds(config), with_seeds(config)
    expected = []
    for training in alone:
        while not training.is_done:
            metrics = training.run_epoch()
        expected.append(metrics)
    found = train_to_the_end(together)
    assert len({training.epoch for training in alone}) > 1
    assert [t.epoch for t in together] == [t.epoch for t in alone]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-10)
    assert_same(together, alone, tmp_path)


@pytest.mark.usefixtures("_in_float64")
def test_a_seed_that_diverges_takes_no_other_along(tmp_path: Path) -> None:
    config = tiny_config(AUGMENT_ALL)
    alone, together = with_seeds(config), with_seeds(config)
    for training in (alone[1], together[1]):
        with torch.no_grad():
            training.network.encoder[0].weight_real.fill_(torch.nan)
    expected = [training.run_epoch() for training in (alone[0], alone[2])]
    first, failed, last = fused.run_epoch(together)
    assert isinstance(failed, NonFiniteLossError)
    assert "train_loss is nan in epoch 1" in str(failed)
    assert [t.epoch for t in together] == [1, 0, 1]
    for mine, theirs in zip((first, last), expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-10)
    assert_same(together[::2], alone[::2], tmp_path)


def test_what_does_not_fit_into_memory_takes_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(AUGMENT_ALL)
    alone, together = with_seeds(config), with_seeds(config)
    tried = []

    def refuse(loss: Any, *args: Any) -> None:
        tried.append(loss)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused, "functional_call", refuse)
    found = fused.run_epoch(together)
    assert len(tried) == 2  # all three, then two of them
    assert found == [training.run_epoch() for training in alone]
    assert_same(together, alone, tmp_path, close=0.0)


def test_whom_memory_does_not_suffice_for_alone_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(AUGMENT_ALL)
    alone, together = with_seeds(config), with_seeds(config)
    expected = [training.run_epoch() for training in alone]

    def refuse(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused, "functional_call", refuse)
    monkeypatch.setattr(together[1], "train_steps", refuse)
    monkeypatch.setattr(together[2], "_val_metrics", refuse)
    first, second, third = fused.run_epoch(together)
    assert first == expected[0]
    for failed in (second, third):
        assert isinstance(failed, torch.OutOfMemoryError)
        assert failed.__traceback__ is None  # it would keep what memory there is
    assert_same(together[:1], alone[:1], tmp_path, close=0.0)


def test_nobody_takes_an_epoch_twice_where_memory_ends_after_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together, unstack, n_before = with_seeds(tiny_config()), fused._unstack, 1

    def refuse_the_second(*args: Any) -> None:
        nonlocal n_before
        n_before -= 1
        if n_before < 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        unstack(*args)

    monkeypatch.setattr(fused, "_unstack", refuse_the_second)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        fused.run_epoch(together)


def test_one_alone_is_trained_as_always() -> None:
    (alone,), together = with_seeds(tiny_config(), (4,)), with_seeds(tiny_config(), (4,))
    assert fused.run_epoch(together) == [alone.run_epoch()]


def test_the_steps_read_nothing_back_from_the_device() -> None:
    trainings = with_seeds(tiny_config(AUGMENT_ALL))
    with Reads() as reads:
        fused.train_steps(trainings)
    assert reads.n == 0


def test_only_equals_are_fused() -> None:
    one, two = with_seeds(tiny_config(), (1, 2))
    other_lr = Training(tiny_config(lr=0.5), PACK, CPU)
    with pytest.raises(ValueError, match=r"differ in train\.seed alone"):
        fused.run_epoch([one, other_lr])
    other_clips = Training(tiny_config(), dataclasses.replace(PACK, data_hash="1" * 16), CPU)
    with pytest.raises(ValueError, match="on the same clips"):
        fused.run_epoch([one, other_clips])
    with pytest.raises(ValueError, match="of a deep encoder without bias"):
        fused.run_epoch(with_seeds(small_config("mobilenetv2"), (1, 2)))
    two.run_epoch()
    with pytest.raises(ValueError, match="equally far"):
        fused.run_epoch([one, two])


def test_which_systems_are_fused() -> None:
    rest = {"mobilenetv2", "autoencoder", "gmade"}
    rest |= {name for name in SYSTEMS if name.startswith(("mahalanobis", "nearest"))}
    assert set(FUSED) == set(SYSTEMS) - rest
    with_bias = dataclasses.replace(tiny_config().network, bias=True)
    assert not fused.can_fuse(dataclasses.replace(tiny_config(), network=with_bias))
    assert not fused.can_fuse(tiny_config(compile=True))


def test_crops_may_be_those_of_another_training() -> None:
    one = Training(tiny_config(AUGMENT_ALL), PACK, CPU)
    two = Training(tiny_config(AUGMENT_ALL), PACK, CPU, crops=one.crops)
    assert two.crops is one.crops
    assert one.run_epoch() == two.run_epoch()
    assert np.array_equal(one.scores(np.arange(4)).nll, two.scores(np.arange(4)).nll)
