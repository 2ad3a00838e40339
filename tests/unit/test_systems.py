"""Heads and losses that all classifiers share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mimimi_core.config import NetworkConfig
from mimimi_core.systems import CosineHead, Logits, PooledConv, build_head, divergence
from tests.system_fixtures import Constant


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_from_single_ids_is_the_cross_entropy() -> None:
    logits, ids = _random(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    found = divergence(logits, F.one_hot(ids, 3).float())
    torch.testing.assert_close(found, F.cross_entropy(logits, ids))


def test_the_divergence_from_a_mixture_is_measured_from_its_weights() -> None:
    target = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    torch.testing.assert_close(divergence(torch.log(target + 1e-9), target), torch.tensor(0.0))
    entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
    expected = ((np.log(2) - entropy) + np.log(2)) / 2
    torch.testing.assert_close(
        divergence(torch.zeros(2, 2), target), torch.tensor(expected).float()
    )


def test_every_head_that_is_there_has_a_loss_of_its_own() -> None:
    magnitude, complex_, total = _random(3, 6, 2)
    target = F.one_hot(torch.tensor([0, 1, 1, 0, 1, 0]), 2).float()
    crop = torch.zeros(6, 1, 1, 1)
    losses = Constant(Logits(magnitude, complex_, total)).losses(crop, target)
    assert list(losses) == ["total", "magnitude", "complex"]
    for name, head in (("total", total), ("magnitude", magnitude), ("complex", complex_)):
        torch.testing.assert_close(losses[name], divergence(head, target))
    assert list(Constant(Logits(None, None, total)).losses(crop, target)) == ["total"]


def test_scores_read_the_total_alone() -> None:
    total = _random(4, 3)
    found = Constant(Logits(_random(4, 3, seed=1), None, total)).nll(torch.zeros(4, 1, 1, 1))
    torch.testing.assert_close(found, -torch.log_softmax(total.double(), dim=1))


def test_pooling_after_a_convolution_makes_its_channels_the_logits() -> None:
    head = PooledConv(3, 2, (5, 1), (2, 1), (2, 0))
    x = _random(4, 3, 9, 3)
    expected = F.conv2d(x, head.weight, head.bias, (2, 1), (2, 0)).mean((2, 3))
    torch.testing.assert_close(head(x), expected)


def test_the_settings_choose_the_head() -> None:
    assert isinstance(build_head(NetworkConfig(), 8, 4), PooledConv)
    config = NetworkConfig(head="arcface", arcface_scale=7.0, arcface_margin=0.25)
    head = build_head(config, 8, 4, kernel=(5, 1))
    assert isinstance(head, CosineHead)
    assert (head.scale, head.margin, head.is_noisy) == (7.0, 0.25, False)
    assert [p.shape for p in head.parameters()] == [(4, 8)]
    noisy = build_head(NetworkConfig(head="noisy_arcmix", arcface_scale=7.0), 8, 4)
    assert isinstance(noisy, CosineHead)
    assert (noisy.scale, noisy.margin, noisy.is_noisy) == (7.0, 0.5, True)


@pytest.mark.parametrize("bf16", [False, True])
def test_cosine_logits_are_scaled_cosines_of_the_averaged_channels(bf16: bool) -> None:
    head = CosineHead(5, 3, scale=12.0, margin=0.5)
    x = 100 * _random(4, 5, 6, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = head(x)
    assert logits.dtype == torch.float32
    for b in range(4):
        for c in range(3):
            u, v = x[b].mean(dim=(1, 2)), head.directions[c]
            cosine = (u @ v) / (u.norm() * v.norm())
            torch.testing.assert_close(logits[b, c], 12 * cosine, rtol=1e-4, atol=1e-4)


def test_cosine_scores_do_not_saturate() -> None:
    head = CosineHead(5, 3, scale=30.0, margin=0.5)
    logits = 30 * torch.tensor([[1.0, -1.0, 0.0], [0.999, -1.0, 0.0]])
    torch.testing.assert_close(head.nll(logits)[:, 0], torch.tensor([0.0, 0.03]))
    assert head.nll(logits).argmin(dim=1).tolist() == [0, 0]


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_the_margin_widens_the_angle_of_the_right_id_alone(margin: float) -> None:
    head = CosineHead(5, 3, scale=4.0, margin=margin)
    angles = torch.tensor([[0.4, 1.5, 2.0], [2.5, 0.1, 1.0]])
    right = [1, 0]
    loss = head.loss(4 * torch.cos(angles), F.one_hot(torch.tensor(right), 3).float())
    expected = []
    for angle, c in zip(angles, right, strict=True):
        widened = angle.clone()
        widened[c] += margin
        expected.append(-torch.log_softmax(4 * torch.cos(widened), dim=0)[c])
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)


def test_a_mixture_has_the_weighted_losses_of_its_ids() -> None:
    head = CosineHead(5, 3, scale=4.0, margin=0.3)
    logits = 4 * torch.cos(torch.tensor([[0.4, 1.5, 2.0]]))
    alone = [head.loss(logits, torch.eye(3)[c : c + 1]) for c in range(3)]
    mixed = head.loss(logits, torch.tensor([[0.2, 0.0, 0.8]]))
    torch.testing.assert_close(mixed, 0.2 * alone[0] + 0.8 * alone[2])


def _first_id_has_the_margin(angles: Tensor, first: int, second: int, share: float) -> Tensor:
    """The loss of Choi and Choi's code: logits for the first label, then both cross-entropies."""
    widened = angles.clone()
    widened[first] += 0.3
    log_p = torch.log_softmax(4 * torch.cos(widened), dim=0)
    return -(share * log_p[first] + (1 - share) * log_p[second])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_noisy_arcmix_of_two_ids_is_the_papers_whichever_came_first(share: float) -> None:
    head = CosineHead(5, 3, scale=4.0, margin=0.3, is_noisy=True)
    angles = torch.tensor([0.4, 1.5, 2.0])
    found = head.loss(4 * torch.cos(angles)[None], torch.tensor([[share, 0.0, 1 - share]]))
    one_first = _first_id_has_the_margin(angles, 0, 2, share)
    other_first = _first_id_has_the_margin(angles, 2, 0, 1 - share)
    torch.testing.assert_close(found, (one_first + other_first) / 2)
    arcmix = CosineHead(5, 3, scale=4.0, margin=0.3)
    assert not torch.isclose(
        arcmix.loss(4 * torch.cos(angles)[None], torch.tensor([[share, 0.0, 1 - share]])), found
    )


def test_noisy_arcmix_is_a_mean_over_crops_and_over_the_ids_in_each() -> None:
    head = CosineHead(5, 3, scale=4.0, margin=0.3, is_noisy=True)
    logits, target = 4 * torch.cos(_random(2, 3)), torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    expected = []
    for crop, weights in zip(logits, target, strict=True):
        losses = []
        for margined in weights.nonzero()[:, 0].tolist():
            angle = torch.acos(crop / 4)
            angle[margined] = angle[margined] + 0.3
            losses.append(-(weights * torch.log_softmax(4 * torch.cos(angle), dim=0)).sum())
        expected.append(torch.stack(losses).mean())
    torch.testing.assert_close(head.loss(logits, target), torch.stack(expected).mean())


def test_without_a_mixture_noisy_arcmix_is_arcface() -> None:
    logits, target = 4 * torch.cos(_random(5, 3)), F.one_hot(torch.tensor([0, 1, 2, 1, 0])).float()
    noisy = CosineHead(5, 3, scale=4.0, margin=0.3, is_noisy=True)
    arcface = CosineHead(5, 3, scale=4.0, margin=0.3)
    torch.testing.assert_close(noisy.loss(logits, target), arcface.loss(logits, target))


def test_the_margin_has_a_gradient_even_at_an_angle_of_zero() -> None:
    head = CosineHead(2, 2, scale=30.0, margin=0.5)
    with torch.no_grad():
        head.directions.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [0.0, -1.0]])[:, :, None, None].requires_grad_()
    head.loss(head(x), torch.eye(2)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert head.directions.grad is not None
    assert head.directions.grad.isfinite().all()
