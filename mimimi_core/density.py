"""Densities of normal log-mel frames, which know no ids: the DCASE baseline and the group MADE.

Both look at vectors of consecutive frames, V of them in a crop of T frames. B batch, C ids,
M mel bands.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mimimi_core.config import CONTEXT
from mimimi_core.precision import full_precision
from mimimi_core.systems import System

AUTOENCODER = (128, 128, 128, 128, 8, 128, 128, 128, 128)  # units of the hidden layers
MADE = (512, 512)
_LEAST_VARIANCE = 1.0  # dB^2: no level is foretold better, not even in digital silence


class FrameDensity(System):
    """One model of all ids of a type, as the DCASE 2020 baseline trains one.

    Runs in fp32 throughout: in bf16 a level of 60 dB is only known to a quarter of one.
    """

    def __init__(self, n_mels: int, n_ids: int) -> None:
        super().__init__()
        self.n_inputs, self.n_ids = CONTEXT * n_mels, n_ids

    @abstractmethod
    def vector_nll(self, vectors: Tensor) -> Tensor:
        """How unlikely each vector `(n, CONTEXT * M)` in dB is, `(n,)`."""

    def losses(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Mean over the vectors of all crops `(B, 1, M, T)`."""
        with full_precision(features.device):
            return {"total": self.vector_nll(stack_frames(features).flatten(0, 1)).mean()}

    def nll(self, features: Tensor) -> Tensor:
        """Mean over the vectors of each crop, the same for every id."""
        vectors = stack_frames(features)
        with full_precision(features.device):
            of_vector = self.vector_nll(vectors.flatten(0, 1))
        return (
            torch.unflatten(of_vector, 0, vectors.shape[:2]).mean(1)[:, None].repeat(1, self.n_ids)
        )


def stack_frames(features: Tensor) -> Tensor:
    """Vectors `(B, V, CONTEXT * M)` of `(B, 1, M, T)`: V = T - CONTEXT + 1, frame after frame."""
    return features[:, 0].unfold(2, CONTEXT, 1).permute(0, 2, 3, 1).flatten(2)


class Autoencoder(FrameDensity):
    """The DCASE 2020 Task 2 baseline: 640-128x4-8-128x4-640, batch norm and ReLU after each layer.

    The score is the mean squared error of five log-mel frames (Koizumi et al., 2020). Initialised
    and normalised as the baseline's Keras layers are, but with torch's momentum of 0.1 for
    the running statistics: Keras' 0.99 needs a thousand steps to reach them. It trained 100 epochs
    of all frames with Adam at 1e-3.
    """

    def __init__(self, n_mels: int, n_ids: int) -> None:
        super().__init__(n_mels, n_ids)
        layers: list[nn.Module] = []
        n_in = self.n_inputs
        for n_out in AUTOENCODER:
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, eps=1e-3), nn.ReLU()]
            n_in = n_out
        self.layers = nn.Sequential(*layers, nn.Linear(n_in, self.n_inputs))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def vector_nll(self, vectors: Tensor) -> Tensor:
        """Mean squared error of each reconstruction, dB^2."""
        rebuilt: Tensor = self.layers(vectors)
        return (rebuilt - vectors).square().mean(dim=1)


class MaskedLinear(nn.Linear):
    """A linear layer some of whose connections are cut."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(in_features=mask.shape[1], out_features=mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, n_in)` to `(n, n_out)`; `mask` is (n_out, n_in)."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class GroupMade(FrameDensity):
    """Group-masked autoencoder for density estimation: each frame given those before it.

    MADE (Germain et al., ICML 2015) with the frames as groups, as in Giri et al.'s DCASE 2020
    system: a normal distribution of each band of frame g, its mean and spread computed from
    frames before g alone. The widths of the hidden layers are ours. The layers see levels that are
    standardised by their average over all training batches so far.
    """

    n_batches: Tensor
    mean: Tensor  # dB
    variance: Tensor  # dB^2

    def __init__(self, n_mels: int, n_ids: int) -> None:
        super().__init__(n_mels, n_ids)
        self.register_buffer("n_batches", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(self.n_inputs))
        self.register_buffer("variance", torch.ones(self.n_inputs))
        inputs = torch.arange(CONTEXT).repeat_interleave(n_mels)  # the frame of each
        layers: list[nn.Module] = []
        seen = inputs
        for width in MADE:  # units take turns to know frames 0, 0..1, ..., all but the last
            hidden = torch.arange(width) % (CONTEXT - 1)
            layers += [MaskedLinear((seen <= hidden[:, None]).float()), nn.ReLU()]
            seen = hidden
        outputs = inputs.repeat(2)  # means, then logarithms of spreads
        self.layers = nn.Sequential(*layers, MaskedLinear((seen < outputs[:, None]).float()))

    def vector_nll(self, vectors: Tensor) -> Tensor:
        """Negative log-likelihood of each vector in nats, dB being the unit."""
        if self.training:
            self.n_batches += 1
            self.mean.lerp_(vectors.mean(dim=0), 1 / self.n_batches)
            self.variance.lerp_(vectors.var(dim=0), 1 / self.n_batches)
        mean, spread = self.mean, (self.variance + _LEAST_VARIANCE).sqrt()
        shift, log_gain = self.layers((vectors - mean) / spread).chunk(2, dim=1)
        variance = _LEAST_VARIANCE + (spread * log_gain.exp()).square()
        error = vectors - (mean + spread * shift)
        nll: Tensor = 0.5 * (torch.log(2 * torch.pi * variance) + error.square() / variance)
        return nll.sum(dim=1)
