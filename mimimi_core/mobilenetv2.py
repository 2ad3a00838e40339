"""MobileNetV2 (Sandler et al., CVPR 2018, Table 2) for spectra: one input channel, id logits.

The published table has no dropout, and neither has this.
"""

from torch import Tensor, nn

from mimimi_core.config import NetworkConfig
from mimimi_core.layout import channels_last
from mimimi_core.systems import Classifier, Logits, build_head

# Table 2: expansion, output channels, repetitions, stride of the first
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST = 32, 1280  # channels of the first and the last convolution


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; added to the input where shapes agree."""

    def __init__(self, n_in: int, n_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * n_in
        self.is_residual = stride == 1 and n_in == n_out
        expand = [] if expansion == 1 else _conv(n_in, hidden, kernel=1)
        project = [nn.Conv2d(hidden, n_out, 1, bias=False), nn.BatchNorm2d(n_out)]
        self.layers = nn.Sequential(
            *expand, *_conv(hidden, hidden, kernel=3, stride=stride, groups=hidden), *project
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, n_in, F, T)` to `(B, n_out, F', T')`."""
        y: Tensor = self.layers(x)
        return x + y if self.is_residual else y


class MobileNetV2(Classifier):
    """The published network at width 1; a map is a 32nd of the crop in either direction."""

    def __init__(self, config: NetworkConfig, n_ids: int) -> None:
        super().__init__()
        layers: list[nn.Module] = _conv(1, STEM, kernel=3, stride=2)
        n_in = STEM
        for expansion, n_out, n, stride in BLOCKS:
            for i in range(n):
                layers.append(InvertedResidual(n_in, n_out, expansion, stride if i == 0 else 1))
                n_in = n_out
        self.encoder = nn.Sequential(*layers, *_conv(n_in, LAST, kernel=1))
        self.total_conv = build_head(config, LAST, n_ids)
        for module in self.encoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, features: Tensor) -> Logits:
        """Logits of `(B, 1, F, T)` float32."""
        encoded = self.encoder(channels_last(features))
        return Logits(magnitude=None, complex=None, total=self.total_conv(encoded))


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = (kernel - 1) // 2
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(n_out), nn.ReLU6()]
