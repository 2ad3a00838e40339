import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimimi_core.complex_nn import ComplexConv2d, complex_magnitude
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
