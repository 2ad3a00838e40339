"""One training of a system, epoch by epoch, and its scores."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mimimi_core import checkpoint
from mimimi_core.batches import Batches
from mimimi_core.config import (
    CLASSIFIERS,
    ID_FREE,
    AugmentConfig,
    ConfigError,
    NetworkKind,
    TrainConfig,
    TrialConfig,
    differences,
)
from mimimi_core.crops import Crops
from mimimi_core.frontend import Frontend
from mimimi_core.metrics import AucReport, auc_report
from mimimi_core.network import build_network
from mimimi_core.pack import Pack
from mimimi_core.precision import autocast, pick_device, use_bf16
from mimimi_core.scoring import WINDOWS_PER_BATCH, ClipScores, score_clips
from mimimi_core.systems import Loss

LabelFree = Literal["id_swap_auc", "normal_log_likelihood"]
Objective = Literal["val_auc", LabelFree]
_LIKELIHOOD_CROPS = 4  # of each held-out normal clip


class NonFiniteLossError(ArithmeticError):
    """The loss or the scores of an epoch are no numbers; these settings cannot be trained."""


class OtherTrainingError(checkpoint.CheckpointError):
    """A checkpoint belongs to another training; the message says in what they differ."""


def objective_of(pack: Pack, kind: NetworkKind | None = None) -> Objective:
    """What a search may maximise: `val_auc` if any id that is trained has both labels in val.

    Else `id_swap_auc`, or `normal_log_likelihood` where the kind of network is known and scores a
    clip the same under every id.
    """
    is_val = pack.splits == "val"
    for index in pack.trained:
        if len(np.unique(pack.labels[is_val & (pack.id_index == index)])) == 2:
            return "val_auc"
    return "normal_log_likelihood" if kind in ID_FREE else "id_swap_auc"


def held_out_normals(pack: Pack) -> np.ndarray:
    """Normal clips that neither train a network nor are kept for the test, as clip indices.

    Of ids that others train: a network cannot know the sound of the rest.
    """
    clips = np.concatenate([pack.select(split, label=0) for split in ("holdout", "val")])
    return clips[np.isin(pack.id_index[clips], pack.trained)]


def _require_objective(objective: Objective, config: TrialConfig, pack: Pack) -> None:
    """Raise ConfigError where these clips or this kind of network do not allow the objective."""
    if objective == "val_auc":
        if objective_of(pack) != "val_auc":
            raise ConfigError(
                f"{pack.machine_type}: the objective val_auc needs a machine id with normal and "
                "anomalous clips in val, and there is none: label some, or take one of "
                f"{', '.join(get_args(LabelFree))}"
            )
        return
    if objective == "id_swap_auc" and config.network.kind in ID_FREE:
        raise ConfigError(
            f"{pack.machine_type}: the objective id_swap_auc compares scores under different "
            f"ids, and network.kind {config.network.kind!r} gives the same under all: label "
            "some anomalies, or take normal_log_likelihood"
        )
    n_ids = len(np.unique(pack.id_index[held_out_normals(pack)]))
    needed, name = (2, "two machine ids") if objective == "id_swap_auc" else (1, "a machine id")
    if n_ids < needed:
        raise ConfigError(
            f"{pack.machine_type}: the objective {objective} needs held-out normal clips of "
            f"{name}, and there are some of {n_ids}: add normal recordings (10 of an id are "
            "enough), or label some anomalies"
        )


class Training:
    """A network, its optimiser and its data, advanced one epoch at a time.

    All randomness of epoch e comes from (seed, e), so a training restored at an epoch's end
    continues bit for bit as if it had never stopped (on CPU).

    Args:
        config: All settings.
        pack: The clips of one machine type.
        device: Where to train; the first GPU or the CPU by default.
        objective: What is maximised: patience waits for it, a search compares by it. By default
            `objective_of` the pack and the kind of network.
        crops: Those of another training on these clips, to hold them on a GPU but once.

    Raises:
        ConfigError: Fewer than two machine ids, no clip to train on, a classifier of a single id,
            or an objective that these clips do not allow.
    """

    def __init__(
        self,
        config: TrialConfig,
        pack: Pack,
        device: torch.device | None = None,
        objective: Objective | None = None,
        crops: Crops | None = None,
    ) -> None:
        if not len(pack.select("train", label=0)):
            raise ConfigError(
                f"{pack.machine_type}: there is no normal clip to train on: add normal recordings "
                "to its train folder"
            )
        if config.network.kind in CLASSIFIERS and len(pack.trained) < 2:
            raise ConfigError(
                f"{pack.machine_type}: network.kind {config.network.kind!r} learns by telling "
                "machines apart and needs training clips of at least 2 machine ids, got "
                f"{', '.join(np.array(pack.machine_ids)[pack.trained])} of "
                f"{', '.join(pack.machine_ids)}: add normal recordings of a sister machine, or "
                f"take network.kind {' or '.join(ID_FREE)}"
            )
        self.config, self.pack = config, pack
        self.device = device or pick_device()
        self.bf16 = use_bf16(config.train.precision, self.device)
        self.objective: Objective = objective or objective_of(pack, config.network.kind)
        self.frontend = Frontend(config.frontend).to(self.device)
        self.crops = crops or Crops.from_pack(pack, config.frontend, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.network = build_network(config.network, len(pack.machine_ids), config.frontend).to(
                self.device
            )
        _require_objective(self.objective, config, pack)
        self.loss = Loss(self.network, config.train)
        self._step_loss = compiled(self.loss, self.device) if config.train.compile else self.loss
        parameters = list(self.network.parameters())
        # a system may be fitted in closed form
        self.optimizer = build_optimizer(config.train, parameters) if parameters else None
        self.epoch = 0
        self.batches = Batches(config.augment, pack, self.crops, self.frontend, self.device)
        # Of the best epoch so far, where patience asks for it: epoch, metrics and network.
        self._best: dict[str, Any] | None = None

    @classmethod
    def from_checkpoint(
        cls, path: Path, pack: Pack, device: torch.device | None = None
    ) -> "Training":
        """A training as `save` left it, settings and objective included."""
        state = checkpoint.load(path)
        config = TrialConfig.from_params(state["params"])
        training = cls(config, pack, device, state["objective"])
        training._take(state, path)
        return training

    @property
    def is_done(self) -> bool:
        """Whether the epochs are used up, or the last `patience` of them brought nothing better."""
        train = self.config.train
        waited = self.epoch - self._best["epoch"] if self._best else 0
        return self.epoch >= train.epochs or 0 < train.patience <= waited

    def run_epoch(self) -> dict[str, float]:
        """Train on one crop of every training clip, then `finish_epoch`."""
        return self.finish_epoch(self.train_steps())

    def finish_epoch(self, mean_loss: Tensor) -> dict[str, float]:
        """Count the epoch whose steps are taken, and score the validation clips.

        With patience, the last epoch of a training puts the network of the best one back and
        returns its metrics.

        Returns:
            `train_loss` and what can be computed of `val_auc`, its interval `val_auc_low`,
            `val_auc_high`, `val_pauc` and `val_auc/<id>`; `id_swap_auc` or `normal_log_likelihood`
            where it is the objective, and both in the last epoch, so that finished trainings can
            tell how well either ranks them.

        Raises:
            NonFiniteLossError: The loss or a score overflowed or became NaN.
        """
        loss = float(mean_loss)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"train_loss is {loss} in epoch {self.epoch + 1} "
                f"(train.lr {self.config.train.lr:g}, bf16 {self.bf16})"
            )
        self.epoch += 1
        metrics = {"train_loss": loss} | self._val_metrics()
        if self.objective != "val_auc":
            metrics[self.objective] = self._label_free(self.objective)
        if self.config.train.patience:
            self._keep_best(metrics)
        if self.is_done:
            if self._best:
                self.network.load_state_dict(self._best["network"])
                metrics = dict(self._best["metrics"])
            if len(np.unique(self.pack.id_index[held_out_normals(self.pack)])) >= 2:
                names: tuple[LabelFree, ...] = get_args(LabelFree)
                if self.config.network.kind in ID_FREE:
                    names = ("normal_log_likelihood",)
                metrics |= {name: self._label_free(name) for name in names if name not in metrics}
        return metrics

    def train_steps(self) -> Tensor:
        """Take all steps of an epoch; its mean loss, still on the device.

        Nothing in here waits for the device. `finish_epoch` is what counts the epoch and scores.
        """
        total = torch.zeros((), device=self.device)
        self.network.train()
        for features, target, lr in self.draw_epoch():
            with autocast(self.device, self.bf16):
                loss = self._step_loss(features, target)
            if self.optimizer:
                set_lr(self.optimizer, lr)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
            total += loss.detach() * len(target)
        return total / len(self.batches.clips)

    def draw_epoch(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Features, target weights and learning rate of each step of the next epoch."""
        train, clips = self.config.train, self.batches.clips
        generator = torch.Generator(self.device).manual_seed((train.seed << 16) + self.epoch)
        order = torch.randperm(len(clips), generator=generator, device=self.device)
        batches = torch.split(clips[order], train.batch_size)
        for step, batch in enumerate(batches):
            features, target = self.batches.draw(batch, generator)
            yield features, target, _lr(train, (self.epoch + step / len(batches)) / train.epochs)

    def scores(self, clips: np.ndarray) -> ClipScores:
        """Score clips of the pack, each under its own id.

        Raises:
            NonFiniteLossError: A score is no number; so do the figures below, which are of scores.
        """
        if not len(clips):
            nll = np.empty((0, len(self.pack.machine_ids)))
        else:
            self.network.eval()
            nll = score_clips(self.network, self.frontend, self.crops, clips, self.bf16)
        self._require_finite(nll)
        return ClipScores(clips=clips, id_index=self.pack.id_index[clips], nll=nll)

    def auc_report(self, *splits: str) -> AucReport:
        """AUCs over the labelled clips of the named splits, none of an id without training."""
        clips = np.concatenate([self.pack.select(split) for split in splits])
        found = self.scores(clips)
        return auc_report(
            found.scores,
            self.pack.labels[clips],
            found.id_index,
            self.pack.machine_ids,
            untrained=self.pack.untrained_ids,
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

    def normal_log_likelihood(self) -> float:
        """Mean log-likelihood under the own id of augmented crops of held-out normals.

        Of a classifier, the mean log softmax; compare within one network.kind and head only. Needs
        no anomaly, and unlike `id_swap_auc` does not saturate where plain clips are all told
        apart. The augmentations are the training's own but mixing, or white noise on every
        crop where it has none. The crops are the same in every epoch and in all trainings with
        the same frames, what is drawn to augment them in every epoch and in those that augment
        alike. Mild augmentations are easier to bear, so trials that differ in them compare with a
        bias.
        """
        clips = held_out_normals(self.pack)
        if not len(clips):
            raise ValueError(
                f"{self.pack.machine_type}: no held-out normal clips, so there is nothing to "
                "select a model by: add normal recordings"
            )
        config = self.config.augment
        if not (config.noise or config.mask or config.shift):
            config = AugmentConfig(noise=True, noise_p=1.0)
        for_crops = torch.Generator(self.device).manual_seed(0)
        for_augmenting = torch.Generator(self.device).manual_seed(1)
        chosen = torch.from_numpy(np.tile(clips, _LIKELIHOOD_CROPS)).to(self.device)
        self.network.eval()
        total = 0.0
        with torch.inference_mode():
            for part in torch.split(chosen, WINDOWS_PER_BATCH):
                crops = self.crops.random(part, for_crops)
                features = self.batches.features(crops, config, for_augmenting)
                with autocast(self.device, self.bf16):
                    nll = self.network.nll(features)
                total += float(nll.gather(1, self.batches.ids[part][:, None]).double().sum())
        self._require_finite(total)
        return -total / len(chosen)

    def save(self, path: Path, metrics: dict[str, float]) -> None:
        """Write all that `restore` needs, and the last epoch's metrics, atomically."""
        state = {
            **self._identity(),
            "epoch": self.epoch,
            "metrics": metrics,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer and self.optimizer.state_dict(),
            "best": self._best,
        }
        checkpoint.save(state, path)

    def restore(self, path: Path) -> dict[str, float]:
        """Continue where `save` left off; returns the metrics it was given.

        Raises:
            CheckpointError: The file is missing or damaged.
            OtherTrainingError: It is of other settings, clips or another objective.
        """
        return self._take(checkpoint.load(path), path)

    def _take(self, state: dict[str, Any], path: Path) -> dict[str, float]:
        """As `restore`, of what was read from the file: tensors on the CPU, which are copied."""
        identity = self._identity()
        stored = {key: state.get(key) for key in identity}
        with suppress(ConfigError):  # of another version, which the differences tell
            if stored["params"]:  # settings that it was saved before have their defaults
                stored["params"] = TrialConfig.from_params(stored["params"]).to_params()
        if found := list(differences("", stored, identity)):
            raise OtherTrainingError(
                f"{path} is of another training: {'; '.join(found)}; train anew"
            )
        self.network.load_state_dict(state["network"])
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self._best = state["epoch"], state["best"]
        metrics: dict[str, float] = state["metrics"]
        return metrics

    def _identity(self) -> dict[str, Any]:
        """What a training must share with the one that it continues."""
        return {
            "params": self.config.to_params(),
            "objective": self.objective,
            "machine_ids": list(self.pack.machine_ids),
            "data_hash": self.pack.data_hash,
        }

    def _val_metrics(self) -> dict[str, float]:
        """What the labelled clips of val allow."""
        report = self.auc_report("val")
        if report.auc is None or report.pauc is None or report.ci is None:
            return {}
        metrics = {"val_auc": report.auc, "val_pauc": report.pauc}
        metrics |= {"val_auc_low": report.ci[0], "val_auc_high": report.ci[1]}
        return metrics | {
            f"val_auc/{x.machine_id}": x.auc for x in report.per_id if x.auc is not None
        }

    def _label_free(self, name: LabelFree) -> float:
        return self.id_swap_auc() if name == "id_swap_auc" else self.normal_log_likelihood()

    def _keep_best(self, metrics: dict[str, float]) -> None:
        name = self.objective
        if self._best is None or metrics[name] > self._best["metrics"][name]:
            network = {key: value.clone() for key, value in self.network.state_dict().items()}
            self._best = {"epoch": self.epoch, "metrics": dict(metrics), "network": network}

    def _require_finite(self, scores: np.ndarray | float) -> None:
        if not np.isfinite(scores).all():  # the last step of an epoch has no loss to show it
            raise NonFiniteLossError(
                f"scores are not finite after epoch {self.epoch} (train.lr "
                f"{self.config.train.lr:g}, bf16 {self.bf16})"
            )


def compiled(
    loss: Loss, device: torch.device, backend: str = "inductor"
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same loss by `torch.compile`, up to rounding; on a GPU replayed as CUDA graphs.

    A graph is made for each size of a batch when it first comes.
    """
    torch.compiler.reset()  # a worker's ninth network would not be compiled any more
    mode = "reduce-overhead" if device.type == "cuda" else None
    return torch.compile(loss, backend=backend, mode=mode, dynamic=False)


def build_optimizer(train: TrainConfig, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(parameters, train.lr, weight_decay=train.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Have the next step taken at this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _lr(train: TrainConfig, progress: float) -> float:
    """Learning rate after a share `progress` of the training."""
    factor = 0.5 * (1 + math.cos(math.pi * progress)) if train.lr_schedule == "cosine" else 1.0
    return train.lr * factor
