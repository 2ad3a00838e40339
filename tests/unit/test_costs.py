"""Costs before training, against counts by hand and what a training really saves."""

import numpy as np
import pytest
import torch

from mimimi_core import costs
from mimimi_core.config import TrialConfig
from mimimi_core.network import build_network
from search.costs import cost_of, excesses

SMALL = {
    "network.channels": 4,
    "network.depth": 3,
    "frontend.n_fft": 128,
    "frontend.hop": 64,
    "frontend.n_frames": 16,
    "train.batch_size": 4,
}


def test_the_papers_network() -> None:
    paper = TrialConfig()
    assert costs.n_parameters(paper, 4) == 859_306
    # 64 frames of 32 ms are 2.048 s; design: 1.55 GMAC a crop
    assert costs.gmac_per_s(paper, 4) == pytest.approx(1.55 / 2.048, rel=0.01)


def test_latency_is_of_one_thread_and_leaves_the_others_alone() -> None:
    before = torch.get_num_threads()
    assert 0 < costs.latency_ms(TrialConfig.from_params(SMALL), 2) < 5000
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_memory_is_what_a_step_saves_and_four_numbers_a_parameter(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the tensors that autograd keeps in a real step; a CPU keeps fewer."""
    if device != "cpu":  # torch's own layers
        plain = lambda x, norm, prelu: prelu(norm(x))  # noqa: E731
        monkeypatch.setattr("mimimi_core.network.norm_prelu", plain)
    config = TrialConfig.from_params(SMALL)
    network = build_network(config.network, 2, config.frontend)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    features = torch.randn(4, *config.frontend.feature_shape)
    target = torch.full((4, 2), 0.5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(network.losses(features, target).values())
    n = sum(p.numel() for p in network.parameters())
    estimate, real = costs.train_gib(config, 2) * 2**30, sum(kept.values()) + 16 * n
    if device == "cpu":
        assert real < estimate
    else:
        assert estimate == pytest.approx(real, rel=0.02)
    assert isinstance(loss, torch.Tensor)


def test_memory_grows_with_the_batch() -> None:
    sizes = [
        costs.train_gib(TrialConfig.from_params(SMALL | {"train.batch_size": batch}), 2)
        for batch in (8, 16, 32)
    ]
    assert np.diff(sizes)[1] == pytest.approx(2 * np.diff(sizes)[0], rel=0.01)


def test_an_excess_is_a_share_of_the_limit() -> None:
    n = cost_of("parameters", SMALL, 2)
    assert excesses({"parameters": n / 2}, SMALL, 2) == {"parameters": pytest.approx(1.0)}
    assert excesses({"parameters": n}, SMALL, 2) == {"parameters": 0.0}
    assert excesses({}, SMALL, 2) == {}
    assert excesses({}, SMALL | {"frontend.hop": 1024}, 2) == {"settings": 1.0}
