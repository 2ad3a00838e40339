"""How maps lie in memory: channels last, unless `fused` has stacked them."""

import torch
from torch import Tensor


def is_stacked(x: Tensor) -> bool:
    """Whether `x` stands for the tensors of several networks at once, within `torch.func.vmap`.

    Such a tensor has no memory format to ask for, and only torch's own kernels take it.
    """
    return torch._C._functorch.is_batchedtensor(x)


def channels_last(x: Tensor) -> Tensor:
    """`x` `(B, C, F, T)` as convolutions like it best; as it is where it is stacked."""
    return x if is_stacked(x) else x.contiguous(memory_format=torch.channels_last)
