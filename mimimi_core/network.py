"""The complex network with attention of Kim, Ho and Kang (EUSIPCO 2021), section III and Table I.

Its real-valued twin, and the one way to build either or any other system.

B batch, C ids, F bins, T frames.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mimimi_core.complex_nn import (
    ComplexConv2d,
    build_activation,
    build_norm,
    complex_magnitude,
)
from mimimi_core.config import (
    ID_FREE,
    ConfigError,
    FrontendConfig,
    NetworkConfig,
)
from mimimi_core.density import Autoencoder, GroupMade
from mimimi_core.layout import channels_last, is_stacked
from mimimi_core.mahalanobis import Mahalanobis
from mimimi_core.mobilenetv2 import MobileNetV2
from mimimi_core.nearest_neighbour import NearestNeighbour
from mimimi_core.norm_prelu import norm_prelu
from mimimi_core.systems import Classifier, Logits, System, build_head


class ChannelAttention(nn.Module):
    """Weights channels by their pooled content: `A(F_t) * F_t + F_t` (III-B, equation 1)."""

    def __init__(self, n_channels: int, expansion: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, n_channels, (3, 1), (2, 1), (padding, 0))
        self.expand = nn.Linear(n_channels, expansion * n_channels)
        self.reduce = nn.Linear(expansion * n_channels, n_channels)

    def weights(self, x: Tensor) -> Tensor:
        """The attention vector `A`, `(B, n_channels)`, summing to 1."""
        pooled = self.conv(x).mean(dim=(2, 3))
        return torch.softmax(self.reduce(torch.relu(self.expand(pooled))).float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Reweight `(B, n_channels, F, T)`; each channel's gain lies in 1..2."""
        return x * (1 + self.weights(x)[:, :, None, None])


class Encoder(nn.Sequential):
    """Convolution, norm and activation by turns; a batch norm and its PReLU are computed as one."""

    def forward(self, x: Tensor) -> Tensor:
        """The map after the last layer."""
        layers = list(self)
        for conv, norm, activation in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
            x = conv(x)
            # `vmap` gives a batch norm a weight in the dtype of its map, and torch refuses a bf16
            # one beside fp32 statistics (a GPU in the backward pass); nor does autocast reach a
            # PReLU in there.
            y = x.float() if is_stacked(x) else x
            if isinstance(norm, nn.BatchNorm2d) and isinstance(activation, nn.PReLU):
                y = norm_prelu(y, norm, activation)
            else:
                y = activation(norm(y))
            x = y.to(x.dtype)
        return x


def build_encoder(config: NetworkConfig, is_complex: bool) -> Encoder:
    """Layers of convolution, norm and activation, in complex or in real numbers."""
    blocks: list[nn.Module] = []
    n_in = 1
    for n_out, kernel, stride in config.layers:
        halved = config.padding == "half"
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if halved else (0, 0)
        if is_complex:
            blocks += [
                ComplexConv2d(n_in, n_out, kernel, stride, padding, config.bias),
                build_norm(config.norm, n_out),
                build_activation(config.activation, n_out),
            ]
        else:
            conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=config.bias)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            blocks += [conv, nn.BatchNorm2d(n_out), nn.PReLU(n_out)]
        n_in = n_out
    return Encoder(*blocks)


class ComplexNetwork(Classifier):
    """Encoder of complex layers, a magnitude and a complex branch, attention, three heads."""

    def __init__(self, config: NetworkConfig, n_ids: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config, is_complex=True)
        n_in, _, _ = config.layers[-1]
        halved = config.padding == "half"
        branch_padding = (2, 0) if halved else (0, 0)
        self.magnitude_conv = nn.Conv2d(n_in, n_ids, (5, 1), (2, 1), branch_padding)
        # C channels of F_t come from here, so Table I's "Complex conv2d" is a real
        # convolution over both parts: attention then has the 2C = 8 channels of the table.
        self.complex_conv = nn.Conv2d(2 * n_in, n_ids, (5, 1), (2, 1), branch_padding)
        self.attention = (
            ChannelAttention(2 * n_ids, config.attention_expansion, padding=int(halved))
            if config.attention
            else nn.Identity()
        )
        self.total_conv = build_head(config, 2 * n_ids, n_ids)

    def forward(self, spectrum: Tensor) -> Logits:
        """Logits of `(B, 2, F, T)` float32 (real, imaginary)."""
        encoded = self.encoder(channels_last(spectrum))
        by_magnitude = self.magnitude_conv(complex_magnitude(encoded))
        by_complex = self.complex_conv(encoded)
        fused = self.attention(torch.cat([by_magnitude, by_complex], dim=1))
        return Logits(
            magnitude=by_magnitude.float().mean(dim=(2, 3)),
            complex=by_complex.float().mean(dim=(2, 3)),
            total=self.total_conv(fused),
        )


class RealNetwork(Classifier):
    """The deep encoder of Table I with real convolutions, as in Table II's magnitude rows.

    One branch is left, Table I's "Magnitude conv2d", so its pooled channels are the logits.
    """

    def __init__(self, config: NetworkConfig, n_ids: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config, is_complex=False)
        n_in, _, _ = config.layers[-1]
        branch_padding = (2, 0) if config.padding == "half" else (0, 0)
        self.total_conv = build_head(config, n_in, n_ids, (5, 1), (2, 1), branch_padding)

    def forward(self, features: Tensor) -> Logits:
        """Logits of a magnitude or log-mel spectrum `(B, 1, F, T)` float32."""
        encoded = self.encoder(channels_last(features))
        return Logits(magnitude=None, complex=None, total=self.total_conv(encoded))


def build_network(
    config: NetworkConfig, n_ids: int, frontend: FrontendConfig | None = None
) -> System:
    """The system for `n_ids` machine ids of one type; with the defaults, the paper's network.

    Args:
        config: Its kind and settings.
        n_ids: Ids to tell apart.
        frontend: Kind and size of its input; by default the paper's.

    Raises:
        ConfigError: Fewer ids than the system needs.
    """
    if n_ids < 2 and config.kind not in ID_FREE:
        raise ConfigError(
            f"id classification needs at least 2 machine ids of a type, got {n_ids}: "
            f"add recordings of a sister machine, or take network.kind {' or '.join(ID_FREE)}"
        )
    system = _build(config, n_ids, frontend or FrontendConfig())
    system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return system


def _build(config: NetworkConfig, n_ids: int, frontend: FrontendConfig) -> System:
    match config.kind:
        case "deep_encoder" if frontend.kind == "complex":
            return ComplexNetwork(config, n_ids)
        case "deep_encoder":
            return RealNetwork(config, n_ids)
        case "mobilenetv2":
            return MobileNetV2(config, n_ids)
        case "autoencoder":
            return Autoencoder(frontend.n_mels, n_ids)
        case "gmade":
            return GroupMade(frontend.n_mels, n_ids)
        case "mahalanobis":
            return Mahalanobis(frontend, n_ids)
        case "nearest_neighbour":
            return NearestNeighbour(frontend, n_ids)


class Cost(NamedTuple):
    """What one network costs, whatever the machine."""

    n_parameters: int  # that a gradient trains
    macs: int  # multiply-accumulates of one crop's forward pass


def network_cost(network: NetworkConfig, frontend: FrontendConfig, n_ids: int) -> Cost:
    """Count while one crop passes, on the CPU.

    Neither torch's FLOP counter nor its meta device is used: both import torch's compiler, which
    takes longer than all the rest of a dry run.

    Raises:
        ConfigError: A crop is too small for this network, or of another kind than it takes.
    """
    network.check_input(frontend)
    with torch.random.fork_rng(devices=[]):
        model = build_network(network, n_ids, frontend).eval()
    with torch.no_grad(), _MacCounter() as counter:
        model.nll(torch.zeros(1, *frontend.feature_shape))
    return Cost(sum(p.numel() for p in model.parameters()), counter.macs)


class _MacCounter(TorchFunctionMode):
    """Counts the multiply-accumulates of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the function; count what it multiplies."""
        out = func(*args, **(kwargs or {}))
        if func is torch.conv2d:
            self.macs += out.numel() * args[1][0].numel()
        elif func in (F.linear, Tensor.matmul, Tensor.__matmul__):
            self.macs += out.numel() * args[0].shape[-1]
        return out
