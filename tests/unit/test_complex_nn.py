import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimimi_core.complex_nn import (
    ComplexBatchNorm2d,
    ComplexConv2d,
    ModReLU,
    ZReLU,
    build_activation,
    build_norm,
    complex_magnitude,
)
from mimimi_core.config import NetworkConfig, Size
from mimimi_core.network import build_network


def _stack(z: Tensor) -> Tensor:
    """complex64 `(B, C, F, T)` to the real `(B, 2C, F, T)` of the layers."""
    return torch.cat([z.real, z.imag], dim=1)


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.complex(
        torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((7, 5), (2, 2), (3, 2)), ((5, 2), (2, 1), (2, 0)), ((1, 1), (1, 1), (0, 0))],
)
def test_convolution_is_torchs_on_complex_tensors(
    kernel: Size, stride: Size, padding: Size, bias: bool
) -> None:
    torch.manual_seed(1)
    layer = ComplexConv2d(3, 4, kernel, stride, padding, bias)
    complex_bias = None
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
        complex_bias = torch.complex(layer.bias[:4], layer.bias[4:])
    z = _random(2, 3, 17, 9)
    weight = torch.complex(layer.weight_real, layer.weight_imag)
    expected = F.conv2d(z, weight, complex_bias, stride, padding)
    torch.testing.assert_close(layer(_stack(z)), _stack(expected), rtol=1e-4, atol=1e-4)


def test_gradients_of_the_convolution_are_those_of_complex_autograd() -> None:
    layer = ComplexConv2d(2, 3, (3, 2), (2, 1), (1, 0), bias=False)
    z = _random(2, 2, 9, 6)
    layer(_stack(z)).square().sum().backward()
    weight = torch.complex(layer.weight_real, layer.weight_imag).detach().requires_grad_()
    F.conv2d(z, weight, None, (2, 1), (1, 0)).abs().square().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(layer.weight_real.grad, weight.grad.real, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.weight_imag.grad, weight.grad.imag, rtol=1e-4, atol=1e-3)


def test_turning_the_phase_of_the_input_turns_that_of_the_output() -> None:
    layer = ComplexConv2d(2, 3, (3, 3), (1, 1), (1, 1), bias=False)
    z, turn = _random(1, 2, 8, 8), torch.polar(torch.tensor(1.0), torch.tensor(0.7))
    real, imag = layer(_stack(z)).chunk(2, dim=1)
    turned = layer(_stack(z * turn))
    expected = _stack(torch.complex(real, imag) * turn)
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_normalises_and_activates_each_component_by_itself() -> None:
    n = 3
    block = build_network(NetworkConfig(channels=n), n_ids=2).encoder[:3]
    conv, norm, prelu = block
    with torch.no_grad():
        for parameter in (norm.weight, norm.bias, prelu.weight):
            parameter.copy_(torch.randn(2 * n, generator=torch.Generator().manual_seed(2)))
    of_real, of_imag = nn.BatchNorm2d(n), nn.BatchNorm2d(n)
    expected = []
    z = _random(4, 1, 32, 16)
    convolved = F.conv2d(z, torch.complex(conv.weight_real, conv.weight_imag), None, (2, 2), (3, 2))
    parts = ((convolved.real, of_real, slice(0, n)), (convolved.imag, of_imag, slice(n, 2 * n)))
    with torch.no_grad():
        for part, reference, half in parts:
            reference.weight.copy_(norm.weight[half])
            reference.bias.copy_(norm.bias[half])
            expected.append(F.prelu(reference(part), prelu.weight[half]))
        found = block(_stack(z))
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var"):
        both = torch.cat([getattr(of_real, name), getattr(of_imag, name)])
        torch.testing.assert_close(getattr(norm, name), both, rtol=1e-4, atol=1e-4)


def test_magnitude_is_the_absolute_value() -> None:
    z = _random(2, 5, 7, 3)
    torch.testing.assert_close(complex_magnitude(_stack(z)), z.abs(), rtol=1e-5, atol=1e-5)


def test_magnitude_has_a_gradient_at_zero() -> None:
    x = torch.zeros(1, 2, 2, 2, requires_grad=True)
    complex_magnitude(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_magnitude_of_bfloat16_is_float32() -> None:
    x = _stack(_random(1, 2, 3, 3)).bfloat16()
    assert complex_magnitude(x).dtype == torch.float32
    z = torch.complex(*x.float().chunk(2, dim=1))
    torch.testing.assert_close(complex_magnitude(x), z.abs(), rtol=1e-6, atol=1e-5)


def _correlated(seed: int = 0) -> Tensor:
    """Three channels whose parts differ in mean and spread and depend on each other."""
    z = _random(64, 3, 9, 7, seed=seed)
    mix = torch.tensor([0.9, -0.4, 0.0])[None, :, None, None]
    return torch.complex(3 * z.real + 2, 0.5 * z.imag + mix * z.real - 1)


def _covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(C,)` and covariance `(C, 2, 2)` of the parts of each channel."""
    parts = torch.stack([z.real, z.imag]).movedim(2, 0).flatten(2)  # (C, 2, values)
    return torch.complex(*parts.mean(2).T), torch.stack([torch.cov(p, correction=0) for p in parts])


def _unstack(x: Tensor) -> Tensor:
    return torch.complex(*x.chunk(2, dim=1))


def test_whitening_leaves_no_mean_and_the_identity_as_covariance() -> None:
    norm = ComplexBatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1.0, 0.0])[:, None].expand(3, 3))
    mean, covariance = _covariance(_unstack(norm(_stack(_correlated()))))
    torch.testing.assert_close(mean, torch.zeros(3, dtype=torch.complex64), rtol=0, atol=1e-4)
    torch.testing.assert_close(covariance, torch.eye(2).expand(3, 2, 2), rtol=0, atol=1e-3)


def test_whitening_starts_with_a_modulus_of_variance_one() -> None:
    _, covariance = _covariance(_unstack(ComplexBatchNorm2d(3)(_stack(_correlated()))))
    torch.testing.assert_close(covariance, torch.eye(2).expand(3, 2, 2) / 2, rtol=0, atol=1e-3)


def test_whitening_is_the_symmetric_root_then_the_learned_matrix() -> None:
    norm, z = ComplexBatchNorm2d(3), _correlated()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
        norm.bias.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(2)))
    mean, covariance = _covariance(z)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag_embed(values**-0.5) @ vectors.mT
    rr, ii, ri = norm.weight.detach()
    learned = torch.stack([torch.stack([rr, ri]), torch.stack([ri, ii])]).movedim(2, 0)
    centred = z - mean[:, None, None]
    parts = torch.stack([centred.real, centred.imag])
    expected = torch.einsum("cij,jbcft->ibcft", learned @ root, parts)
    expected = expected + norm.bias.detach()[:, None, :, None, None]
    found = norm(_stack(z)).detach()
    torch.testing.assert_close(found, torch.cat([*expected], dim=1), rtol=1e-3, atol=1e-3)


def test_running_statistics_whiten_in_evaluation() -> None:
    norm = ComplexBatchNorm2d(3)
    for seed in range(80):
        norm(_stack(_correlated(seed)))
    norm.eval()
    before = norm.running_cov.clone()
    mean, covariance = _covariance(_unstack(norm(_stack(_correlated(99)))))
    assert mean.abs().max() < 0.1
    torch.testing.assert_close(covariance, torch.eye(2).expand(3, 2, 2) / 2, rtol=0, atol=0.05)
    assert torch.equal(norm.running_cov, before)


def test_the_first_running_statistics_are_torchs() -> None:
    norm, reference = ComplexBatchNorm2d(3), nn.BatchNorm2d(6)
    x = _stack(_correlated())
    norm(x)
    reference(x)
    assert reference.running_mean is not None
    assert reference.running_var is not None
    torch.testing.assert_close(norm.running_mean.flatten(), reference.running_mean)
    torch.testing.assert_close(norm.running_cov[:2].flatten(), reference.running_var)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_whitening_survives_parts_that_are_one(scale: float) -> None:
    real = scale * torch.randn(8, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    x = torch.cat([real, 2 * real], dim=1).requires_grad_()
    y = ComplexBatchNorm2d(1)(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert y.abs().max() < 100


def test_modrelu_shortens_and_keeps_the_phase() -> None:
    layer, z = ModReLU(3), _random(2, 3, 5, 4)
    torch.testing.assert_close(layer(_stack(z)), _stack(z), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-0.7, 0.0, 0.4]))
    length = torch.relu(z.abs() + layer.bias.detach()[:, None, None])
    expected = torch.polar(length, z.angle())
    torch.testing.assert_close(layer(_stack(z)), _stack(expected), rtol=1e-4, atol=1e-4)
    assert (length == 0).any()


def test_modrelu_has_a_gradient_at_zero() -> None:
    x = torch.zeros(1, 2, 2, 2, requires_grad=True)
    ModReLU(1)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_crelu_rectifies_each_part() -> None:
    z = _random(2, 3, 5, 4)
    expected = torch.complex(z.real.relu(), z.imag.relu())
    torch.testing.assert_close(build_activation("crelu", 3)(_stack(z)), _stack(expected))


def test_zrelu_passes_the_first_quadrant() -> None:
    z = _random(2, 3, 5, 4)
    passes = (z.angle() > 0) & (z.angle() < torch.pi / 2)
    torch.testing.assert_close(ZReLU()(_stack(z)), _stack(z * passes))
    assert 0.1 < passes.float().mean() < 0.4


@pytest.mark.parametrize("layer", [ComplexBatchNorm2d(3), ModReLU(3), ZReLU()])
def test_layers_keep_bfloat16(layer: nn.Module) -> None:
    x = _stack(_random(2, 3, 5, 4))
    found = layer(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x), rtol=0.1, atol=0.1)


def test_norms_and_activations_have_their_own_parameters() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(build_norm("split", 5)) == 5 * 4
    assert count(build_norm("whitening", 5)) == 5 * (3 + 2)
    assert count(build_activation("prelu", 5)) == 5 * 2
    assert count(build_activation("modrelu", 5)) == 5
    assert count(build_activation("crelu", 5)) == count(build_activation("zrelu", 5)) == 0
