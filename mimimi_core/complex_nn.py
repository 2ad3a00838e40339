"""Complex layers on real tensors: `(B, 2C, F, T)` holds the C real parts first, then the imaginary.

Real tensors keep autocast, channels_last and ONNX export available, and since the parts are
channels, torch's own `BatchNorm2d(2C)` and `PReLU(2C)` already are the paper's "batch
normalization and PReLU for each complex component" (section III-A).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimimi_core.config import Size


class ComplexConv2d(nn.Module):
    """Complex convolution as one real convolution with the stacked weight `[[Wr, -Wi], [Wi, Wr]]`.

    Args:
        n_in: Complex input channels.
        n_out: Complex output channels.
        kernel: (F, T) extent.
        stride: (F, T) stride.
        padding: (F, T) zero padding.
        bias: Adds a complex bias per output channel.
    """

    def __init__(
        self, n_in: int, n_out: int, kernel: Size, stride: Size, padding: Size, bias: bool
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight_real = nn.Parameter(torch.empty(n_out, n_in, *kernel))
        self.weight_imag = nn.Parameter(torch.empty(n_out, n_in, *kernel))
        self.bias = nn.Parameter(torch.zeros(2 * n_out)) if bias else None
        for weight in (self.weight_real, self.weight_imag):
            nn.init.kaiming_normal_(weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, 2 n_in, F, T)` into `(B, 2 n_out, F', T')`."""
        to_real = torch.cat([self.weight_real, -self.weight_imag], dim=1)
        to_imag = torch.cat([self.weight_imag, self.weight_real], dim=1)
        weight = torch.cat([to_real, to_imag], dim=0).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def complex_magnitude(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Absolute value of `(B, 2C, F, T)`, `(B, C, F, T)` float32; eps bounds the gradient at 0."""
    real, imag = x.float().chunk(2, dim=1)
    return torch.sqrt(real.square() + imag.square() + eps)
