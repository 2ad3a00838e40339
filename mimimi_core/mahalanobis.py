"""Mahalanobis distance of mean log spectra: fitted in closed form, trained by nothing.

One mean per id and one covariance of all (Lee et al., NeurIPS 2018), on the simplest feature there
is. What a network adds must show beyond this. B batch, C ids, D bins or bands.
"""

import torch
from torch import Tensor

from mimimi_core.config import FrontendConfig
from mimimi_core.systems import System

_LEAST_VARIANCE = 0.01  # dB^2, which digital silence would be without


class Mahalanobis(System):
    """Sums over training crops, from which every batch computes means and covariance anew.

    As batch norm gathers its statistics, so does this: an epoch is a pass over the crops, a further
    one adds further crops.
    """

    n_of_id: Tensor
    sum_of_id: Tensor
    products: Tensor
    means: Tensor
    precision: Tensor

    def __init__(self, frontend: FrontendConfig, n_ids: int) -> None:
        super().__init__()
        _, n_rows, _ = frontend.feature_shape
        self.is_magnitude = frontend.kind == "magnitude"
        double = torch.float64  # levels of -60 dB, squared and summed, cancel in the covariance
        self.register_buffer("n_of_id", torch.zeros(n_ids, dtype=double))
        self.register_buffer("sum_of_id", torch.zeros(n_ids, n_rows, dtype=double))
        self.register_buffer("products", torch.zeros(n_rows, n_rows, dtype=double))
        self.register_buffer("means", torch.zeros(n_ids, n_rows, dtype=double))
        self.register_buffer("precision", torch.eye(n_rows, dtype=double))

    def losses(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Take a batch into the sums; the loss, its mean distance after that, has no gradient."""
        x, weights = mean_spectra(features, self.is_magnitude), target.double()
        self.n_of_id += weights.sum(dim=0)
        self.sum_of_id += weights.T @ x
        self.products += x.T @ x
        self._fit()
        return {"total": (weights * self._half_distances(x)).sum(dim=1).mean().float()}

    def nll(self, features: Tensor) -> Tensor:
        """Half the squared distance of each crop `(B, 1, D, T)` from each id's mean."""
        return self._half_distances(mean_spectra(features, self.is_magnitude)).float()

    def _half_distances(self, x: Tensor) -> Tensor:
        deviation = x[:, None] - self.means  # (B, C, D)
        return 0.5 * (deviation @ self.precision * deviation).sum(dim=2)

    def _fit(self) -> None:
        """Means and inverse covariance of all crops so far."""
        n = self.n_of_id.sum()
        overall = self.sum_of_id.sum(dim=0) / n
        of_id = self.sum_of_id / self.n_of_id.clamp_min(1)[:, None]
        is_heard = (self.n_of_id > 0)[:, None]
        self.means.copy_(torch.where(is_heard, of_id, overall))
        within = self.products - (self.n_of_id[:, None] * of_id).T @ of_id
        covariance = shrink(within / n, n - is_heard.sum())
        floor = _LEAST_VARIANCE * torch.eye(len(covariance), dtype=n.dtype, device=n.device)
        # `inv` would wait for the device, to tell of a matrix without an inverse
        self.precision.copy_(torch.linalg.inv_ex(covariance + floor).inverse)


def mean_spectra(features: Tensor, is_magnitude: bool) -> Tensor:
    """Mean over frames in dB, `(B, D)` float64, of magnitudes or levels `(B, 1, D, T)`."""
    level = 20 * torch.log10(features[:, 0]) if is_magnitude else features[:, 0]
    return level.double().mean(dim=2)


def shrink(covariance: Tensor, n: Tensor | float) -> Tensor:
    """Draw the covariance `(D, D)` of `n` observations towards a multiple of the identity.

    By the oracle approximating shrinkage of Chen et al. (IEEE Trans. Signal Process. 2010), their
    equation 23: fewer clips than bands leave a covariance without an inverse.
    """
    d = len(covariance)
    trace, square = covariance.trace(), covariance.square().sum()
    spread = ((n + 1 - 2 / d) * (square - trace.square() / d)).clamp_min(1e-12)
    share = (((1 - 2 / d) * square + trace.square()) / spread).clamp_max(1.0)
    identity = torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    return (1 - share) * covariance + share * trace / d * identity
