"""Batch norm and the PReLU after it in one go over a map, on a CPU.

Each is several kernels to torch, and those of a PReLU with a slope per channel are far from what
they would have to cost in channels_last: they were a third of a training step. Here both go over
the map together, in parts that stay in the cache and are worked on in fp32. The backward pass
recomputes what lies between the two, so less is kept. A GPU gets torch's own kernels, and so do
stacked networks and the compiler, which fuses by itself.

N rows (one per crop and position), C channels.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mimimi_core.layout import is_stacked
from mimimi_core.precision import full_precision

_PART = 1 << 16  # values worked on at a time; five such tensors in fp32 fit a cache of 2 MB


def norm_prelu(x: Tensor, norm: nn.BatchNorm2d, prelu: nn.PReLU) -> Tensor:
    """`prelu(norm(x))` of `(B, C, F, T)`, in the dtype of x; in training updates `norm`."""
    result: Tensor
    if x.device.type != "cpu" or is_stacked(x) or torch.compiler.is_compiling():
        result = prelu(norm(x))
        return result
    mean, var, momentum = norm.running_mean, norm.running_var, norm.momentum or 0.0
    if norm.training:
        if x.numel() == x.shape[1]:
            raise ValueError(f"a batch norm needs several values per channel, got {x.shape}")
        with torch.no_grad():
            mean, var = torch.batch_norm_update_stats(x, mean, var, momentum)
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    args = (norm.weight, norm.bias, prelu.weight, mean, var, norm.eps, norm.training)
    with full_precision(x.device):  # autocast would round every part for torch's PReLU
        result = _NormPReLU.apply(x, *args)  # type: ignore[no-untyped-call]
    return result


class _NormPReLU(torch.autograd.Function):
    """`PReLU(scale x + shift)`; with `of_batch`, the statistics are those of x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        of_batch: bool,
    ) -> Tensor:
        invstd = torch.rsqrt(var + eps)
        scale = weight * invstd
        shift = bias - scale * mean
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        for x_part, y_part in _parts(x, y):
            between = torch.addcmul(shift, x_part.to(scale.dtype), scale)
            y_part.copy_(F.prelu(between, slope))
        ctx.save_for_backward(x, scale, shift, slope, mean, invstd)
        ctx.of_batch = of_batch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, slope, mean, invstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x)  # first the gradient of what lies between, then that of x
        of_bias, of_slope, against_x = torch.zeros(3, len(scale), dtype=scale.dtype)
        for x_part, grad_part, out in _parts(x, grad, grad_x):
            given, values = grad_part.to(scale.dtype), x_part.to(scale.dtype)
            between = torch.addcmul(shift, values, scale)
            # where the PReLU passes; what is left falls on its slope
            passed = torch.ops.aten.threshold_backward(given, between, 0)
            sloped = given - passed
            of_slope += (between * sloped).sum(dim=0)
            inner = torch.addcmul(passed, sloped, slope)
            of_bias += inner.sum(dim=0)
            against_x += (inner * values).sum(dim=0)
            out.copy_(inner)
        of_weight = (against_x - mean * of_bias) * invstd
        by_x = by_one = torch.zeros_like(scale)
        if ctx.of_batch:  # x moves its own mean and variance
            n = x.numel() // x.shape[1]
            by_x = -scale * invstd * of_weight / n
            by_one = -scale * of_bias / n - by_x * mean
        for x_part, out in _parts(x, grad_x):
            rest = torch.addcmul(by_one, x_part.to(scale.dtype), by_x)
            out.copy_(rest.addcmul_(out.to(scale.dtype), scale))
        return grad_x, of_weight, of_bias, of_slope, None, None, None, None


def _parts(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows `(n, C)` of channels_last maps, part by part, as views."""
    rows = [x.permute(0, 2, 3, 1).view(-1, x.shape[1]) for x in maps]
    n = max(1, _PART // maps[0].shape[1])
    return zip(*(torch.split(x, n) for x in rows), strict=True)
