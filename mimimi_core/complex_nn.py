"""Complex layers on real tensors: `(B, 2C, F, T)` holds the C real parts first, then the imaginary.

Real tensors keep autocast, channels_last and ONNX export available, and since the parts are
channels, torch's own `BatchNorm2d(2C)` and `PReLU(2C)` already are the paper's "batch
normalization and PReLU for each complex component" (section III-A), and `ReLU()` is CReLU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimimi_core.config import Activation, Norm, Size
from mimimi_core.layout import channels_last
from mimimi_core.precision import full_precision


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
        weight = channels_last(torch.cat([to_real, to_imag], dim=0))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def complex_magnitude(x: Tensor) -> Tensor:
    """Absolute value of `(B, 2C, F, T)`, `(B, C, F, T)` float32; its gradient at 0 is bounded."""
    real, imag = x.float().chunk(2, dim=1)
    return torch.sqrt(real.square() + imag.square() + 1e-8)


class ComplexBatchNorm2d(nn.Module):
    """Batch norm that whitens (Trabelsi et al., "Deep Complex Networks", ICLR 2018, section 3.5).

    Each channel is centred and multiplied by the inverse square root of the 2 x 2 covariance of its
    parts, which then have variance 1 and no correlation; then by a learned symmetric matrix, and
    shifted. Evaluation uses running statistics, as torch's batch norm does.

    Args:
        n_channels: Complex channels C.
        eps: Added to both variances; also bounds the correlation to what fp32 can invert.
        momentum: Weight of the newest batch in the running statistics.
    """

    running_mean: Tensor  # (2, C)
    running_cov: Tensor  # (3, C): real-real, imaginary-imaginary, real-imaginary

    def __init__(self, n_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        # As `running_cov`; the diagonal of 1 / sqrt(2) gives the modulus a variance of 1.
        start = torch.tensor([0.5, 0.5, 0.0]).sqrt()[:, None]
        self.weight = nn.Parameter(start.repeat(1, n_channels))
        self.bias = nn.Parameter(torch.zeros(2, n_channels))
        identity = torch.tensor([1.0, 1.0, 0.0])[:, None]
        self.register_buffer("running_mean", torch.zeros(2, n_channels))
        self.register_buffer("running_cov", identity.repeat(1, n_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, 2C, F, T)`, returned in its own dtype."""
        with full_precision(x.device):
            parts = torch.unflatten(x.float(), 1, (2, -1))  # (B, 2, C, F, T)
            mean = parts.mean(dim=(0, 3, 4)) if self.training else self.running_mean
            real, imag = (parts - mean[..., None, None]).unbind(dim=1)
            cov = self.running_cov
            if self.training:
                products = (real.square(), imag.square(), real * imag)
                cov = torch.stack([product.mean(dim=(0, 2, 3)) for product in products])
                self._update(mean, cov, n=real.numel() // real.shape[1])
            (a, b), (c, d) = self._matrix(cov)[..., None, None]
            shift = self.bias[..., None, None]
            y = torch.cat([a * real + b * imag + shift[0], c * real + d * imag + shift[1]], dim=1)
        return y.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, cov: Tensor, n: int) -> None:
        """Running statistics of `n` values a channel; the covariance without bias, as torch's."""
        for running, new in (
            (self.running_mean, mean),
            (self.running_cov, cov * n / max(n - 1, 1)),
        ):
            running.add_(new - running, alpha=self.momentum)

    def _matrix(self, cov: Tensor) -> Tensor:
        """Learned matrix times inverse square root of the covariance, `(2, 2, C)`."""
        rr, ii, ri = cov[0] + self.eps, cov[1] + self.eps, cov[2]
        s = (rr * ii - ri.square()).clamp_min(self.eps * rr * ii).sqrt()
        inverse = 1 / (s * (rr + ii + 2 * s).sqrt())
        w_rr, w_ii, w_ri = (ii + s) * inverse, (rr + s) * inverse, -ri * inverse
        g_rr, g_ii, g_ri = self.weight
        return torch.stack(
            [
                torch.stack([g_rr * w_rr + g_ri * w_ri, g_rr * w_ri + g_ri * w_ii]),
                torch.stack([g_ri * w_rr + g_ii * w_ri, g_ri * w_ri + g_ii * w_ii]),
            ]
        )


class ModReLU(nn.Module):
    """`ReLU(abs(z) + b) z / abs(z)`, b learned per channel (Arjovsky et al., ICML 2016).

    Keeps the phase; starts as the identity, b being 0.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Activate `(B, 2C, F, T)`."""
        magnitude = complex_magnitude(x)
        gain = torch.relu(magnitude + self.bias[:, None, None]) / magnitude
        return x * torch.cat([gain, gain], dim=1).to(x.dtype)


class ZReLU(nn.Module):
    """Passes z where both parts are positive, else 0 (Guberman 2016, arXiv 1602.09046)."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate `(B, 2C, F, T)`."""
        passes = torch.unflatten(x > 0, 1, (2, -1)).all(dim=1)
        return x * torch.cat([passes, passes], dim=1)


def build_norm(kind: Norm, n_channels: int) -> nn.Module:
    """Batch norm of `n_channels` complex channels."""
    return nn.BatchNorm2d(2 * n_channels) if kind == "split" else ComplexBatchNorm2d(n_channels)


def build_activation(kind: Activation, n_channels: int) -> nn.Module:
    """Activation of `n_channels` complex channels; CReLU is from Trabelsi et al., section 3.4."""
    match kind:
        case "prelu":
            return nn.PReLU(2 * n_channels)
        case "crelu":
            return nn.ReLU()
        case "modrelu":
            return ModReLU(n_channels)
        case "zrelu":
            return ZReLU()
