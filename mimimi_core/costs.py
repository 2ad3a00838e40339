"""What a training's settings cost, found before any of it is trained."""

import time

import numpy as np
import torch

from mimimi_core.config import TrialConfig
from mimimi_core.crops import Crops
from mimimi_core.frontend import Frontend
from mimimi_core.network import build_network, network_cost
from mimimi_core.precision import use_bf16
from mimimi_core.scoring import score_clips

_CLIP_S = 10
_REPETITIONS = 3
_GIB = 2**30
_BYTES_PER_PARAMETER = 16  # float32: the parameter, its gradient, Adam's two moments


def n_parameters(config: TrialConfig, n_ids: int) -> float:
    """Parameters that a gradient trains."""
    return network_cost(config.network, config.frontend, n_ids).n_parameters


def gmac_per_s(config: TrialConfig, n_ids: int) -> float:
    """1e9 multiply-accumulates to score one second of sound: windows lie side by side."""
    frontend = config.frontend
    macs = network_cost(config.network, frontend, n_ids).macs
    return macs * frontend.sample_rate / (frontend.n_frames * frontend.hop) / 1e9


def latency_ms(config: TrialConfig, n_ids: int) -> float:
    """Milliseconds in which one thread of this machine scores a 10 s clip; the best of three."""
    device = torch.device("cpu")
    network = build_network(config.network, n_ids, config.frontend).eval()
    frontend = Frontend(config.frontend)
    noise = np.random.default_rng(0).integers(-999, 999, _CLIP_S * config.frontend.sample_rate)
    crops = Crops.from_waveforms([noise.astype(np.int16)], config.frontend, device)
    bf16 = use_bf16(config.train.precision, device)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(_REPETITIONS + 1):  # the first one warms up
            started = time.perf_counter()
            score_clips(network, frontend, crops, np.array([0]), bf16)
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(times[1:])


def train_gib(config: TrialConfig, n_ids: int) -> float:
    """GiB that a training step holds: parameters, gradients, Adam's moments, saved activations.

    An estimate for a GPU in float32, over tensors without storage; a context (about 0.5 GiB), the
    allocator's slack and convolution workspaces come on top. Not compared with a GPU yet. A CPU
    saves less, see `norm_prelu`.
    """
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        network = build_network(config.network, n_ids, config.frontend)
        features = torch.empty(config.train.batch_size, *config.frontend.feature_shape)
        target = torch.empty(config.train.batch_size, n_ids)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = network.losses(features, target)
    activations = sum(t.untyped_storage().nbytes() for t in saved.values())
    del losses
    parameters = sum(p.numel() for p in network.parameters())
    return (activations + parameters * _BYTES_PER_PARAMETER) / _GIB
