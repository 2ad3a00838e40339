import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimimi_core.complex_nn import ComplexConv2d
from mimimi_core.config import ConfigError, FrontendConfig, NetworkConfig
from mimimi_core.network import (
    ChannelAttention,
    build_network,
    network_cost,
)
from mimimi_core.systems import Classifier, Logits

PAPER_INPUT = (1, 2, 513, 64)


def _n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _forward(network: Classifier, crop: Tensor) -> tuple[Logits, list[tuple[int, int]]]:
    """The logits, and the size of each map that a complex convolution made on the way."""
    sizes: list[tuple[int, int]] = []
    for module in network.modules():
        if isinstance(module, ComplexConv2d):
            module.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape[2:])))
    return network(crop), sizes


def test_parameter_count_is_that_of_table_1() -> None:
    channels = (1, 45, 90, 90, 90, 45)
    kernels = (7 * 5, 7 * 5, 5 * 3, 5 * 3, 5 * 2)
    pairs = list(zip(channels, channels[1:], kernels, strict=False))
    convolutions = sum(2 * n_in * n_out * size for n_in, n_out, size in pairs)
    norms = sum(2 * 2 * n for n in channels[1:])  # scale and shift, real and imaginary
    slopes = sum(2 * n for n in channels[1:])
    branches = (45 * 4 * 5 + 4) + (90 * 4 * 5 + 4)
    attention = (8 * 8 * 3 + 8) + (8 * 32 + 32) + (32 * 8 + 8)
    total = 8 * 4 + 4
    expected = convolutions + norms + slopes + branches + attention + total
    assert expected == 859_306
    assert _n_parameters(build_network(NetworkConfig(), n_ids=4)) == expected


def test_biases_would_add_two_parameters_per_complex_channel() -> None:
    n_biases = 2 * (45 + 90 + 90 + 90 + 45)
    assert 859_306 + n_biases == 860_026
    assert _n_parameters(build_network(NetworkConfig(bias=True), n_ids=4)) == 860_026


def test_a_bias_before_batch_norm_changes_nothing() -> None:
    plain = build_network(NetworkConfig(channels=2), n_ids=2)
    biased = build_network(NetworkConfig(channels=2, bias=True), n_ids=2)
    biased.load_state_dict(plain.state_dict(), strict=False)
    for module in biased.modules():
        if isinstance(module, ComplexConv2d):
            assert module.bias is not None
            nn.init.normal_(module.bias, std=0.1)
    x = torch.randn(3, 2, 129, 32, generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(plain(x), biased(x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_map_sizes_and_logits_of_the_paper() -> None:
    network = build_network(NetworkConfig(), n_ids=4)
    with torch.no_grad():
        logits, sizes = _forward(network, torch.zeros(PAPER_INPUT))
    assert sizes == [(257, 32), (129, 16), (65, 8), (33, 4), (17, 3)]
    assert logits._fields == ("magnitude", "complex", "total")
    for head in logits:
        assert head.shape == (1, 4)
        assert head.dtype == torch.float32


def test_map_sizes_without_padding() -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(padding="valid"), n_ids=4)
        _, sizes = _forward(network, torch.empty(PAPER_INPUT))
    assert sizes == [(254, 30), (124, 13), (60, 6), (28, 2), (12, 1)]


def _scrambled(config: NetworkConfig, n_ids: int) -> Classifier:
    """A network in which no parameter or statistic has a value that could hide an error."""
    generator = torch.Generator().manual_seed(3)
    network = build_network(config, n_ids).eval()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(0.3 * torch.rand(tensor.shape, generator=generator) + 0.1)
    return network


def _reference(network: nn.Module, config: NetworkConfig, z: Tensor) -> tuple[Tensor, ...]:
    """The paper's figure 1 in complex64 arithmetic, from the parameters of `network`."""
    p = dict(network.named_parameters()) | dict(network.named_buffers())
    pad = 2 if config.padding == "half" else 0
    for layer, (n, kernel, stride) in enumerate(config.layers):
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if pad else (0, 0)
        conv, norm, prelu = (f"encoder.{3 * layer + i}." for i in range(3))
        weight = torch.complex(p[conv + "weight_real"], p[conv + "weight_imag"])
        bias = torch.complex(p[conv + "bias"][:n], p[conv + "bias"][n:]) if config.bias else None
        convolved = F.conv2d(z, weight, bias, stride, padding)
        parts = []
        for part, half in ((convolved.real, slice(0, n)), (convolved.imag, slice(n, 2 * n))):
            mean, var = p[norm + "running_mean"][half], p[norm + "running_var"][half]
            normalized = F.batch_norm(
                part, mean, var, p[norm + "weight"][half], p[norm + "bias"][half]
            )
            parts.append(F.prelu(normalized, p[prelu + "weight"][half]))
        z = torch.complex(*parts)

    def conv(x: Tensor, name: str, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, padding)

    magnitude = conv(z.abs(), "magnitude_conv", (2, 1), (pad, 0))
    complex_ = conv(torch.cat([z.real, z.imag], 1), "complex_conv", (2, 1), (pad, 0))
    fused = torch.cat([magnitude, complex_], 1)
    if config.attention:
        pooled = conv(fused, "attention.conv", (2, 1), (pad // 2, 0)).mean((2, 3))
        hidden = F.linear(pooled, p["attention.expand.weight"], p["attention.expand.bias"]).relu()
        scores = F.linear(hidden, p["attention.reduce.weight"], p["attention.reduce.bias"])
        fused = fused + fused * scores.softmax(1)[:, :, None, None]
    total = conv(fused, "total_conv", (1, 1), (0, 0))
    return tuple(x.mean((2, 3)) for x in (magnitude, complex_, total))


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(channels=3),
        NetworkConfig(channels=3, attention=False),
        NetworkConfig(channels=2, depth=4, bias=True, kernel_width_last=3, attention_expansion=1),
        NetworkConfig(channels=2, depth=3, padding="valid", kernel_height_early=4),
    ],
)
def test_the_network_is_the_papers_in_complex_arithmetic(config: NetworkConfig) -> None:
    network = _scrambled(config, n_ids=3)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 2, 129, 33, generator=generator)
    with torch.no_grad():
        found = network(x)
        expected = _reference(network, config, torch.complex(x[:, :1], x[:, 1:]))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == (2, 3)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_attention_amplifies_a_channel_between_once_and_twice() -> None:
    torch.manual_seed(5)
    attention = ChannelAttention(8, expansion=4, padding=1)
    x = torch.rand(16, 8, 9, 3) + 0.5
    gain = attention(x) / x
    assert gain.min() > 1
    assert gain.max() < 2
    torch.testing.assert_close(gain, gain[:, :, :1, :1].expand_as(gain))  # one per channel
    torch.testing.assert_close(gain[:, :, 0, 0].sum(1), torch.full((16,), 9.0))
    assert gain.std() > 1e-3  # it does attend


@pytest.mark.parametrize(("depth", "attention"), [(3, True), (4, False), (5, True), (6, False)])
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(3, 3, 1), (7, 5, 2), (9, 1, 3), (4, 2, 2)]
)
def test_variants_run(depth: int, attention: bool, height: int, width: int, channels: int) -> None:
    config = NetworkConfig(
        channels=channels,
        depth=depth,
        attention=attention,
        kernel_height_early=height,
        kernel_width_early=width,
        kernel_height_late=width,
        kernel_width_late=height,
        kernel_width_last=1,
    )
    network = build_network(config, n_ids=5)
    logits = network(torch.randn(2, 2, 65, 32, generator=torch.Generator().manual_seed(6)))
    for head in logits:
        assert head.shape == (2, 5)
        assert head.isfinite().all()
    logits.total.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.encoder.parameters())


@pytest.mark.parametrize("n_ids", [0, 1])
def test_one_machine_id_alone_is_refused(n_ids: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 2 machine ids.*got {n_ids}"):
        build_network(NetworkConfig(), n_ids)


def test_cost_counts_every_multiplication() -> None:
    """Depth 3, one channel, 33 x 8 crops: maps 17 x 4, 9 x 2 and 5 x 1; heads 3 x 1, then 2 x 1."""
    config, frontend = (
        NetworkConfig(channels=1, depth=3),
        FrontendConfig(n_fft=64, hop=32, n_frames=8),
    )
    n_ids = 2
    encoder = 17 * 4 * (2 * 2) * 35 + 9 * 2 * (4 * 2) * 35 + 5 * 1 * (2 * 4) * 10
    branches = 3 * (1 * n_ids) * 5 + 3 * (2 * n_ids) * 5
    attention = 2 * (4 * 4) * 3 + 4 * 16 + 16 * 4
    total = 3 * 4 * n_ids
    cost = network_cost(config, frontend, n_ids)
    assert cost.macs == encoder + branches + attention + total
    assert cost.n_parameters == _n_parameters(build_network(config, n_ids))


def test_cost_of_the_papers_network() -> None:
    cost = network_cost(NetworkConfig(), FrontendConfig(), 4)
    assert cost.n_parameters == 859_306
    assert cost.macs == pytest.approx(1.55e9, rel=0.01)


@pytest.mark.parametrize(
    ("network", "frontend"),
    [
        (NetworkConfig(depth=5), FrontendConfig(n_frames=4)),
        (NetworkConfig(padding="valid"), FrontendConfig(n_frames=32)),
        (NetworkConfig(padding="valid"), FrontendConfig(n_fft=64, hop=32)),
        # its last map is 1 x 1, over which a batch of one crop has no variance to normalise by
        (NetworkConfig(kernel_width_last=1), FrontendConfig(n_fft=16, hop=8, n_frames=8)),
    ],
)
def test_too_small_a_crop_is_refused_with_what_to_change(
    network: NetworkConfig, frontend: FrontendConfig
) -> None:
    with pytest.raises(ConfigError) as caught:
        network_cost(network, frontend, 4)
    message = str(caught.value)
    assert f"a crop of {frontend.n_bins} x {frontend.n_frames} (bins x frames) is too small" in (
        message
    )
    assert f"network.depth {network.depth}" in message
    assert "raise frontend.n_frames or lower the depth" in message
