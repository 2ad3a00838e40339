"""The fused batch norm and PReLU against torch's two layers."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from mimimi_core import norm_prelu as module
from mimimi_core.config import NetworkConfig
from mimimi_core.network import Encoder, build_network
from mimimi_core.norm_prelu import norm_prelu

N_CHANNELS = 5
Layers = tuple[nn.BatchNorm2d, nn.PReLU]


@pytest.fixture(autouse=True)
def _many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even a small map, the last part shorter than the others."""
    monkeypatch.setattr(module, "_PART", 37 * N_CHANNELS)


def _layers(dtype: torch.dtype = torch.float32) -> Layers:
    """Both layers, with nothing left at its first value."""
    generator = torch.Generator().manual_seed(1)
    norm, prelu = nn.BatchNorm2d(N_CHANNELS, dtype=dtype), nn.PReLU(N_CHANNELS, dtype=dtype)
    with torch.no_grad():
        for x in (norm.weight, norm.bias, prelu.weight):
            x.copy_(torch.randn(N_CHANNELS, generator=generator))
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return norm, prelu


def _map(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(4, N_CHANNELS, 9, 7, generator=generator) + 1
    return x.to(dtype).to(memory_format=torch.channels_last)


def _run(x: Tensor, grad: Tensor, layers: Layers, fused: bool) -> Iterator[Tensor]:
    """Output, all gradients and running statistics."""
    norm, prelu = layers
    x = x.detach().requires_grad_()
    y = norm_prelu(x, norm, prelu) if fused else prelu(norm(x))
    y.backward(grad)
    yield y
    yield from (p.grad for p in (x, norm.weight, norm.bias, prelu.weight) if p.grad is not None)
    yield from norm.buffers()


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_it_is_torchs_norm_then_its_prelu(is_training: bool, channels_last: bool) -> None:
    x, grad = _map(), _map(seed=1)
    if not channels_last:
        x, grad = x.contiguous(), grad.contiguous()
    found, expected = (
        list(_run(x, grad, tuple(layer.train(is_training) for layer in _layers()), fused))
        for fused in (True, False)
    )
    assert len(found) == len(expected) == 5 + 3
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_gradients_are_those_of_differences(is_training: bool) -> None:
    norm, prelu = (layer.train(is_training) for layer in _layers(torch.float64))
    x = _map(torch.float64)[:2, :, :3, :2].requires_grad_()
    inputs = (x, norm.weight, norm.bias, prelu.weight)
    assert torch.autograd.gradcheck(lambda x, *_: norm_prelu(x, norm, prelu), inputs)


def test_bfloat16_stays_and_is_as_near_to_fp32_as_torchs() -> None:
    x, grad = _map(torch.bfloat16), _map(torch.bfloat16, seed=1)
    exact = list(_run(x.float(), grad.float(), _layers(), fused=False))
    with torch.autocast("cpu", torch.bfloat16):
        ours = list(_run(x, grad, _layers(), fused=True))
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.float(), expected.float(), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("activation", [nn.PReLU(N_CHANNELS), nn.ReLU()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_stacked_maps_are_normed_in_fp32_and_stay_in_their_dtype(
    activation: nn.Module, dtype: torch.dtype
) -> None:
    """torch refuses a batch norm of bf16 beside fp32 statistics under `vmap`."""
    networks = [Encoder(nn.Identity(), nn.BatchNorm2d(N_CHANNELS), activation) for _ in range(2)]
    reached: dict[str, torch.dtype] = {}
    for name, layer in networks[0].named_children():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: reached.update({name: args[0].dtype})
        )
    states = stack_module_state(networks)
    maps = torch.stack([_map(dtype, seed) for seed in (0, 1)])

    def normed(parameters: object, buffers: object, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return functional_call(networks[0], (parameters, buffers), (x,))

    found = vmap(normed)(*states, maps)
    assert reached == {"0": dtype, "1": torch.float32, "2": torch.float32}
    assert found.dtype == dtype
    found.sum().backward()
    exact = torch.stack([activation(nn.BatchNorm2d(N_CHANNELS)(x.float())) for x in maps])
    close = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.float(), exact, rtol=close, atol=close)


def test_what_is_zero_after_the_norm_takes_the_slope() -> None:
    norm, prelu = nn.BatchNorm2d(1), nn.PReLU(1)
    x = torch.zeros(2, 1, 2, 2)
    for fused in (True, False):
        prelu.weight.grad = norm.bias.grad = None
        list(_run(x, torch.ones_like(x), (norm, prelu), fused))
        assert norm.bias.grad is not None
        assert norm.bias.grad.item() == 8 * 0.25


def test_a_single_value_has_no_variance() -> None:
    with pytest.raises(ValueError, match="several values"):
        norm_prelu(torch.ones(1, N_CHANNELS, 1, 1), *_layers())


def test_the_networks_layers_go_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(NetworkConfig(channels=2), n_ids=2)
    spectrum = torch.randn(2, 2, 513, 64)
    expected = network(spectrum).total
    monkeypatch.setattr("mimimi_core.network.norm_prelu", lambda x, norm, prelu: prelu(norm(x)))
    torch.testing.assert_close(network(spectrum).total, expected, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("mimimi_core.network.norm_prelu", lambda x, norm, prelu: x)
    assert not torch.allclose(network(spectrum).total, expected, rtol=1e-3, atol=1e-4)
