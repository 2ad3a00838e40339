"""Which precision is chosen, and that fp32 is fp32."""

from collections.abc import Iterator

import pytest
import torch

from mimimi_core.config import Precision
from mimimi_core.precision import use_bf16
from tests.model_fixtures import CPU

CUDA = torch.device("cuda")  # names it; none need be there


@pytest.fixture(autouse=True)
def _allow_tf32() -> Iterator[None]:
    """As torch starts, and as it was afterwards."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_fp32_on_a_gpu_is_not_tf32(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not use_bf16(precision, CUDA)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_bf16_on_a_gpu_leaves_torchs_settings(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert use_bf16(precision, CUDA)
    assert torch.backends.cudnn.allow_tf32


def test_a_cpu_has_no_say_in_a_gpus_settings() -> None:
    assert not use_bf16("fp32", CPU)
    assert use_bf16("bf16", CPU)
    assert torch.backends.cudnn.allow_tf32
