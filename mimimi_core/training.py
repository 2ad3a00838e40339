"""One training of the id classifier, epoch by epoch, and its scores."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mimimi_core import augment, checkpoint
from mimimi_core.config import ConfigError, TrialConfig
from mimimi_core.crops import Crops
from mimimi_core.frontend import Frontend
from mimimi_core.metrics import AucReport, auc_report
from mimimi_core.network import Logits, build_network
from mimimi_core.pack import Pack
from mimimi_core.precision import autocast, pick_device, use_bf16
from mimimi_core.scoring import ClipScores, score_clips

Objective = Literal["val_auc", "id_swap_auc"]


class NonFiniteLossError(ArithmeticError):
    """The loss or the scores of an epoch are no numbers; these settings cannot be trained."""


def objective_of(pack: Pack) -> Objective:
    """What a search may maximise: `val_auc` if any id has normals and anomalies in val."""
    is_val = pack.splits == "val"
    for index in range(len(pack.machine_ids)):
        if len(np.unique(pack.labels[is_val & (pack.id_index == index)])) == 2:
            return "val_auc"
    return "id_swap_auc"


def held_out_normals(pack: Pack) -> np.ndarray:
    """Normal clips that neither train a network nor are kept for the test, as clip indices."""
    return np.concatenate([pack.select(split, label=0) for split in ("holdout", "val")])


class Training:
    """A network, its optimiser and its data, advanced one epoch at a time.

    All randomness of epoch e comes from (seed, e), so a training restored at an epoch's end
    continues bit for bit as if it had never stopped (on CPU).

    Raises:
        ConfigError: Fewer than two machine ids, or no clip to train on.
    """

    def __init__(self, config: TrialConfig, pack: Pack, device: torch.device | None = None) -> None:
        clips = pack.select("train", label=0)
        if not len(clips):
            raise ConfigError(
                f"{pack.machine_type}: there is no normal clip to train on: add normal recordings "
                "to its train folder"
            )
        self.config, self.pack = config, pack
        self.device = device or pick_device()
        self.bf16 = use_bf16(config.train.precision, self.device)
        self.objective = objective_of(pack)
        self.frontend = Frontend(config.frontend).to(self.device)
        self.crops = Crops.from_pack(pack, config.frontend, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.network = build_network(config.network, len(pack.machine_ids)).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.train.lr,
            weight_decay=config.train.weight_decay,
            fused=True,
        )
        self.epoch = 0
        self._clips = torch.from_numpy(clips).to(self.device)
        self._ids = torch.from_numpy(pack.id_index).to(self.device)
        of_id = [clips[pack.id_index[clips] == i] for i in range(len(pack.machine_ids))]
        self._n_of_id = torch.tensor([len(x) for x in of_id], device=self.device)
        longest = max(len(x) for x in of_id)
        padded = [np.resize(x if len(x) else clips[:1], longest) for x in of_id]
        self._clips_of_id = torch.from_numpy(np.stack(padded)).to(self.device)

    @classmethod
    def from_checkpoint(cls, path: Path, pack: Pack) -> "Training":
        """A training as `save` left it, settings included."""
        state = checkpoint.load(path, torch.device("cpu"))
        training = cls(TrialConfig.from_params(state["params"]), pack)
        training.restore(path)
        return training

    def run_epoch(self) -> dict[str, float]:
        """Train on one crop of every training clip, then score the validation clips.

        Returns:
            `train_loss` and what can be computed of `val_auc`, its interval `val_auc_low`,
            `val_auc_high`, `val_pauc` and `val_auc/<id>`; `id_swap_auc` where it is the objective.

        Raises:
            NonFiniteLossError: The loss or a score overflowed or became NaN.
        """
        loss = self._train_epoch()
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"train_loss is {loss} in epoch {self.epoch + 1} "
                f"(train.lr {self.config.train.lr:g}, bf16 {self.bf16})"
            )
        self.epoch += 1
        metrics = {"train_loss": loss}
        report = self.auc_report("val")
        if report.auc is not None and report.pauc is not None and report.ci is not None:
            metrics |= {"val_auc": report.auc, "val_pauc": report.pauc}
            metrics |= {"val_auc_low": report.ci[0], "val_auc_high": report.ci[1]}
            for x in report.per_id:
                if x.auc is not None:
                    metrics[f"val_auc/{x.machine_id}"] = x.auc
        if self.objective == "id_swap_auc":
            metrics["id_swap_auc"] = self.id_swap_auc()
        return metrics

    def scores(self, clips: np.ndarray) -> ClipScores:
        """Score clips of the pack, each under its own id."""
        if not len(clips):
            nll = np.empty((0, len(self.pack.machine_ids)))
        else:
            self.network.eval()
            nll = score_clips(self.network, self.frontend, self.crops, clips, self.bf16)
        if not np.isfinite(nll).all():  # the last step of an epoch has no loss to show it
            raise NonFiniteLossError(
                f"scores are not finite after epoch {self.epoch} (train.lr "
                f"{self.config.train.lr:g}, bf16 {self.bf16})"
            )
        return ClipScores(clips=clips, id_index=self.pack.id_index[clips], nll=nll)

    def auc_report(self, *splits: str) -> AucReport:
        """AUCs over the labelled clips of the named splits."""
        clips = np.concatenate([self.pack.select(split) for split in splits])
        found = self.scores(clips)
        return auc_report(
            found.scores, self.pack.labels[clips], found.id_index, self.pack.machine_ids
        )

    def id_swap_auc(self) -> float:
        """Mean over ids of the AUC of held-out normals against other ids' normals posing as theirs.

        Needs no anomaly. docs/log.md says how well it ranks networks: the literature warns that
        such proxies may not.
        """
        clips = held_out_normals(self.pack)
        nll, own = self.scores(clips).nll, self.pack.id_index[clips]
        claimed = np.repeat(np.arange(nll.shape[1]), len(clips))
        labels = (np.tile(own, nll.shape[1]) != claimed).astype(np.int64)
        report = auc_report(nll.T.ravel(), labels, claimed, self.pack.machine_ids, n_bootstrap=1)
        if report.auc is None:
            raise ValueError(
                f"{self.pack.machine_type}: no held-out normal clips of two ids, so there is "
                "nothing to select a model by: add normal recordings"
            )
        return report.auc

    def save(self, path: Path, metrics: dict[str, float]) -> None:
        """Write all that `restore` needs, and the last epoch's metrics, atomically."""
        state = {
            "params": self.config.to_params(),
            "machine_ids": list(self.pack.machine_ids),
            "epoch": self.epoch,
            "metrics": metrics,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.save(state, path)

    def restore(self, path: Path) -> dict[str, float]:
        """Continue where `save` left off; returns the metrics it was given.

        Raises:
            CheckpointError: The file is unreadable, or of a training on other machine ids.
        """
        state: dict[str, Any] = checkpoint.load(path, self.device)
        if state["machine_ids"] != list(self.pack.machine_ids):
            raise checkpoint.CheckpointError(
                f"{path} learned {', '.join(state['machine_ids'])}, but the clips are of "
                f"{', '.join(self.pack.machine_ids)}: train on them anew"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        metrics: dict[str, float] = state["metrics"]
        return metrics

    def _train_epoch(self) -> float:
        train = self.config.train
        generator = torch.Generator(self.device).manual_seed((train.seed << 16) + self.epoch)
        self.network.train()
        order = torch.randperm(len(self._clips), generator=generator, device=self.device)
        batches = torch.split(self._clips[order], train.batch_size)
        total = torch.zeros((), device=self.device)
        for step, clips in enumerate(batches):
            progress = (self.epoch + step / len(batches)) / train.epochs
            self._set_lr(progress)
            spectrum, target = self._batch(clips, generator)
            with autocast(self.device, self.bf16):
                logits = self.network(spectrum)
            loss = self._loss(logits, target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach() * len(clips)
        return float(total / len(self._clips))

    def _batch(self, clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented spectra `(B, 2, F, T)` of random crops and their target weights `(B, C)`."""
        config = self.config.augment
        ids = self._ids[clips]
        waveforms = self.crops.random(clips, generator)
        if config.mixing:
            target = augment.mixing_weights(
                ids, self._n_of_id > 0, config.mixing_p, config.mixing_alpha, generator
            )
            waveforms = self._mix(waveforms, ids, target, generator)
        else:
            target = F.one_hot(ids, len(self.pack.machine_ids)).float()
        if config.noise:
            waveforms = augment.add_noise(waveforms, config.noise_p, config.noise_level, generator)
        spectrum = self.frontend(waveforms)
        if config.mask:
            spectrum = augment.mask_bands(
                spectrum, config.mask_p, config.mask_bands, config.mask_width, generator
            )
        if config.shift:
            spectrum = augment.shift_bins(spectrum, config.shift_p, config.shift_bins, generator)
        return spectrum, target

    def _mix(self, own: Tensor, ids: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Weighted sum of one crop per id; the crop's own id contributes the crop itself.

        Mixing waveforms is mixing complex spectra: the transform is linear.
        """
        mixed = torch.zeros_like(own)
        for index in range(weights.shape[1]):
            u = torch.rand(len(own), generator=generator, device=self.device)
            pick = self._clips_of_id[index, (u * self._n_of_id[index]).long()]
            other = self.crops.random(pick, generator)
            is_own = (ids == index)[:, None]
            mixed += weights[:, index, None] * torch.where(is_own, own, other)
        return mixed

    def _loss(self, logits: Logits, target: Tensor) -> Tensor:
        """Weighted sum of the three heads' KL divergences; for one-hot targets, cross-entropies."""
        train = self.config.train
        heads = (
            (logits.total, 1.0),
            (logits.magnitude, train.loss_weight_magnitude),
            (logits.complex, train.loss_weight_complex),
        )
        losses = [
            weight * F.kl_div(F.log_softmax(head, dim=1), target, reduction="batchmean")
            for head, weight in heads
        ]
        return torch.stack(losses).sum()

    def _set_lr(self, progress: float) -> None:
        train = self.config.train
        factor = 0.5 * (1 + math.cos(math.pi * progress)) if train.lr_schedule == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = train.lr * factor
