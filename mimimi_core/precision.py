"""Which device trains, and whether it multiplies bfloat16 in hardware."""

from contextlib import AbstractContextManager, nullcontext

import torch

from mimimi_core.config import Precision


def pick_device() -> torch.device:
    """The first visible GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Resolve "auto": bf16 on GPUs and CPUs that multiply it (AMX, AVX512-BF16), else fp32.

    Elsewhere bf16 is emulated and several times slower than fp32. Where it is fp32 on a GPU, the
    convolutions of this process are so from then on: by itself torch gives them TF32, whose
    fraction has 10 bits.
    """
    bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))
    if device.type == "cuda" and not bf16:
        # Not by `cudnn.conv.fp32_precision`: whoever reads this flag after that gets an error.
        torch.backends.cudnn.allow_tf32 = False
    return bf16


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_it = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return bool(has_it)


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """Context in which matrix work runs in bfloat16, or plainly."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Context in which `autocast` around it has no say."""
    if device.type == "meta":  # tensors without storage, whose operations are only counted
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
