"""What training and scoring ask of every system, and what all id classifiers share.

B batch, C ids, F bins or bands, T frames.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimimi_core.config import NetworkConfig, Size, TrainConfig
from mimimi_core.precision import full_precision


class System(nn.Module, ABC):
    """Judges features of crops, `(B, channels, F, T)` float32 as the front-end makes them."""

    @abstractmethod
    def losses(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scalar terms of the loss by name, `total` among them.

        Args:
            features: Of a training batch.
            target: float32 `(B, C)` weights of the ids in each crop, rows summing to 1.
        """

    @abstractmethod
    def nll(self, features: Tensor) -> Tensor:
        """Negative log-likelihood `(B, C)` of each crop under each id, up to a constant.

        float32, or float64 where it takes that to tell apart what is likely.
        """


class Loss(nn.Module):
    """What a training step minimises: the losses of a system, weighted by the settings."""

    def __init__(self, network: System, train: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.weights = {
            "total": 1.0,
            "magnitude": train.loss_weight_magnitude,
            "complex": train.loss_weight_complex,
        }

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Scalar, of what `System.losses` takes."""
        terms = self.network.losses(features, target)
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()


class Logits(NamedTuple):
    """What the heads of a classifier say, each `(B, C)`; anomaly scores read `total` alone."""

    magnitude: Tensor | None  # None where the network has no such branch
    complex: Tensor | None
    total: Tensor


class Classifier(System):
    """A system that tells ids apart: its `forward` returns `Logits`, the total by `total_conv`."""

    total_conv: "PooledConv | CosineHead"

    def losses(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Divergence of each head that there is from the target."""
        logits: Logits = self(features)
        losses = {"total": self.total_conv.loss(logits.total, target)}
        if logits.magnitude is not None:
            losses["magnitude"] = divergence(logits.magnitude, target)
        if logits.complex is not None:
            losses["complex"] = divergence(logits.complex, target)
        return losses

    def nll(self, features: Tensor) -> Tensor:
        """What the head makes of the total, which alone is scored (paper section IV-B)."""
        logits: Logits = self(features)
        return self.total_conv.nll(logits.total)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Mean KL divergence of softmax(logits) from the target; for one id, the cross-entropy.

    `F.kl_div` bit for bit, which `torch.func` would take network by network.
    """
    log_p = F.log_softmax(logits, dim=1)
    return (torch.xlogy(target, target) - target * log_p).sum() / len(target)


class PooledConv(nn.Conv2d):
    """A convolution whose averaged channels are the logits, as in Table I: no linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 `(B, out_channels)` of a map `(B, in_channels, F, T)`."""
        return super().forward(x).float().mean(dim=(2, 3))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Divergence from the target."""
        return divergence(logits, target)

    def nll(self, logits: Tensor) -> Tensor:
        """`-log softmax` in float64: float32 has it 0 from a gap of 17 between the logits on."""
        return -torch.log_softmax(logits.double(), dim=1)


class CosineHead(nn.Module):
    """Angular-margin head: ArcFace (Deng et al., CVPR 2019).

    The logits are `scale * cos(theta)`, theta being the angle between the averaged channels and an
    id's direction. The loss adds `margin` to the angle of the right id; scores do not, and are
    the bare cosine: a softmax of such logits would round to 1 for every clip told apart.

    Of a mixture there are two losses (Choi and Choi, ICASSP 2024). ArcMix is the weighted sum of
    each id's own loss, the margin being on that id. Noisy-ArcMix is the cross-entropy from the
    weights of logits that have the margin on one id alone, the first of the two that were mixed,
    however little of it is heard: half of the margins are on what is hardly there.

    The target does not tell which id came first, and any may have: weights are drawn whatever the
    crop's own id is. So `is_noisy` takes the mean over all ids of a mixture, which for two
    is what theirs is on average. They mix pairs of a batch, with weights from Beta(0.5, 0.5); ours
    are of every id (`augment.mixing_weights`), with a margin of 0.5 by default, not 0.7.
    """

    def __init__(
        self, n_in: int, n_ids: int, scale: float, margin: float, is_noisy: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.margin, self.is_noisy = scale, margin, is_noisy
        self.directions = nn.Parameter(torch.empty(n_ids, n_in))
        nn.init.xavier_normal_(self.directions)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 `(B, n_ids)` of a map `(B, n_in, F, T)`."""
        with full_precision(x.device):
            pooled = F.normalize(x.float().mean(dim=(2, 3)))
            return self.scale * F.linear(pooled, F.normalize(self.directions))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with the margin on the right id; of a mixture, as the class says."""
        cosine = (logits / self.scale).clamp(-1 + 1e-6, 1 - 1e-6)  # acos has no slope at 1
        wider = torch.acos(cosine) + self.margin
        # Beyond pi the cosine would rise again; from there on the margin is a constant.
        beyond = logits / self.scale - self.margin * math.sin(self.margin)
        with_margin = self.scale * torch.where(wider < torch.pi, torch.cos(wider), beyond)
        # (B, C, C): row c holds the logits if c is the id with the margin
        n_ids = logits.shape[1]
        is_own = torch.eye(n_ids, dtype=torch.bool, device=logits.device)
        candidates = torch.where(is_own, with_margin[:, :, None], logits[:, None, :])
        log_p = F.log_softmax(candidates, dim=2)
        if self.is_noisy:
            is_heard = (target > 0).float()
            with_margin_on = (target[:, None] * log_p).sum(dim=2)
            return -((is_heard * with_margin_on).sum(dim=1) / is_heard.sum(dim=1)).mean()
        return -(target * log_p.diagonal(dim1=1, dim2=2)).sum(dim=1).mean()

    def nll(self, logits: Tensor) -> Tensor:
        """`scale * (1 - cos(theta))`: a von Mises-Fisher density's around each id's direction."""
        return self.scale - logits


def build_head(
    config: NetworkConfig,
    n_in: int,
    n_ids: int,
    kernel: Size = (1, 1),
    stride: Size = (1, 1),
    padding: Size = (0, 0),
) -> PooledConv | CosineHead:
    """The last layer of a classifier; cosines take the place of the whole convolution."""
    if config.head == "linear":
        return PooledConv(n_in, n_ids, kernel, stride, padding)
    is_noisy = config.head == "noisy_arcmix"
    return CosineHead(n_in, n_ids, config.arcface_scale, config.arcface_margin, is_noisy)
