import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mimimi_core import checkpoint
from mimimi_core.checkpoint import CheckpointError
from mimimi_core.training import OtherTrainingError, Training
from tests.model_fixtures import CPU, tiny_config, tone_pack

STATE: dict[str, Any] = {
    "params": {"train.lr": 1e-3, "network.attention": True, "train.precision": "auto"},
    "epoch": 3,
    "network": {"weight": torch.arange(12.0).reshape(3, 4), "count": torch.tensor(7)},
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "state.pt"
    checkpoint.save(STATE, path)
    loaded = checkpoint.load(path)
    assert loaded["params"] == STATE["params"]
    assert loaded["epoch"] == 3
    for name, tensor in STATE["network"].items():
        assert torch.equal(loaded["network"][name], tensor)
        assert loaded["network"][name].dtype == tensor.dtype
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_a_failure_half_way_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(STATE, path)

    def write_half(target: Path, content: memoryview) -> None:
        with target.open("wb") as file:
            file.write(content[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(STATE | {"epoch": 4}, path)
    assert checkpoint.load(path)["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_state_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for epoch in (1, 2):
        checkpoint.save(STATE | {"epoch": epoch}, path)
    assert checkpoint.load(path)["epoch"] == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(STATE, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(CheckpointError, match=r"state\.pt is no readable checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x80", b"RIFF" + bytes(100)])
def test_any_other_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt is no readable checkpoint"):
        checkpoint.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pt is no readable checkpoint"):
        checkpoint.load(tmp_path / "nothing.pt")


def test_a_file_that_storage_does_not_give_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(STATE, path)

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.load(path)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_device_that_fails_is_not_told_as_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[RuntimeError]
) -> None:
    """Raised by hand."""
    path = tmp_path / "state.pt"
    checkpoint.save(STATE, path)

    def fail(*args: Any, **options: Any) -> None:
        raise kind("CUDA error")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(kind, match="CUDA error"):
        checkpoint.load(path)


class _Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)  # noqa: PTH102 - a pickle needs a plain function


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "state.pt", tmp_path / "trace"
    torch.save({"epoch": _Payload(trace)}, path)
    with pytest.raises(CheckpointError, match=r"state\.pt is no readable checkpoint"):
        checkpoint.load(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it would have run


def test_a_training_reads_its_checkpoint_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pack = tmp_path / "state.pt", tone_pack(2, 8, 6)
    Training(tiny_config(), pack, CPU).save(path, {})
    read, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *args: read.append(args) or load(*args))
    Training.from_checkpoint(path, pack, CPU)
    assert len(read) == 1


def test_a_checkpoint_from_before_a_setting_existed_is_of_its_default(
    tmp_path: Path,
) -> None:
    path, pack = tmp_path / "state.pt", tone_pack(2, 8, 6)
    training = Training(tiny_config(patience=2), pack, CPU)
    training.save(path, {})
    state = checkpoint.load(path)
    for name in ("train.weight_decay", "frontend.normalization"):
        del state["params"][name]
    checkpoint.save(state, path)
    assert Training.from_checkpoint(path, pack, CPU).config == training.config
    other = tiny_config(patience=2, weight_decay=0.5)
    with pytest.raises(OtherTrainingError, match=r"train\.weight_decay is 0\.0 there, 0\.5 here"):
        Training(other, pack, CPU).restore(path)
    for params in (None, {"train.lr": 0.0}, {"train.momentum": 0.9}):  # of a later version
        checkpoint.save({**state, "params": params}, path)
        with pytest.raises(OtherTrainingError, match="params"):
            training.restore(path)
