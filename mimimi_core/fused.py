"""Takes the steps of several trainings at once that differ in nothing but their seed.

A network of this size keeps a GPU waiting for the next kernel to be asked for. Stacked by
`torch.func`, S networks ask for as many kernels as one; their convolutions become grouped ones.
Only the steps are shared: each training draws from its own generators in its own order, and has its
own metrics, patience and checkpoint, as if it were alone.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from mimimi_core.config import TrialConfig
from mimimi_core.precision import autocast
from mimimi_core.training import NonFiniteLossError, Training, build_optimizer, set_lr

Tensors = dict[str, Tensor]
_STEP = "step"  # of Adam's state the one tensor that all have in common


def can_fuse(config: TrialConfig) -> bool:
    """Whether trainings of these settings can be stepped as one: those of the deep encoder.

    Not with a bias before a batch norm, as MobileNetV2 has: its gradient is zero but for rounding,
    which Adam scales up to steps of the full size, so there results would be alike, not the same.
    Nor compiled, for a CUDA graph waits for no host and takes no statistics that come from outside.
    """
    network = config.network
    return network.kind == "deep_encoder" and not network.bias and not config.train.compile


def run_epoch(trainings: Sequence[Training]) -> list[dict[str, float] | NonFiniteLossError]:
    """What `Training.run_epoch` of each returns or raises, all steps having been taken together.

    Losses, weights and statistics are those of separate trainings up to the rounding of sums that
    a grouped convolution adds in another order; what is drawn is the same bit for bit. One training
    alone is stepped as always. If memory does not suffice for all, halves of them take turns.

    Args:
        trainings: Equal but for `train.seed`, all after the same epoch, none of them done.

    Raises:
        ValueError: They are not equal.
        torch.OutOfMemoryError: Not even one fits.
    """
    losses = _try_steps(trainings)
    if losses is None:
        middle = len(trainings) // 2
        return run_epoch(trainings[:middle]) + run_epoch(trainings[middle:])
    outcomes: list[dict[str, float] | NonFiniteLossError] = []
    for training, loss in zip(trainings, losses, strict=True):
        try:
            outcomes.append(training.finish_epoch(loss))
        except NonFiniteLossError as error:
            outcomes.append(error)
    return outcomes


def _try_steps(trainings: Sequence[Training]) -> Tensor | None:
    """Mean losses `(S,)`; None if several do not fit into memory, all being as they were before."""
    if len(trainings) == 1:
        return trainings[0].train_steps()[None]
    try:
        return train_steps(trainings)
    except torch.OutOfMemoryError:
        return None


def train_steps(trainings: Sequence[Training]) -> Tensor:
    """`Training.train_steps` of each; mean losses `(S,)`, still on the device.

    Nothing in here waits for the device. Networks and optimisers change at the very end.

    Raises:
        ValueError: The trainings are not equal but for their seeds, or not equally far.
    """
    first = trainings[0]
    _require_equal(trainings)
    for training in trainings:
        training.network.train()
    parameters, buffers = stack_module_state([t.loss for t in trainings])
    optimizer = _stack_optimizers(trainings, parameters)

    def loss_of(parameters: Tensors, buffers: Tensors, features: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = functional_call(first.loss, (parameters, buffers), (features, target))
        return loss

    total = torch.zeros(len(trainings), device=first.device)
    for drawn in zip(*(t.draw_epoch() for t in trainings), strict=True):
        of_features, of_targets, lrs = zip(*drawn, strict=True)
        features, target = torch.stack(of_features), torch.stack(of_targets)
        with autocast(first.device, first.bf16):
            losses = vmap(loss_of)(parameters, buffers, features, target)
        set_lr(optimizer, lrs[0])
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]  # no network is in another's loss
        optimizer.step()
        total += losses.detach() * target.shape[1]
    for index, training in enumerate(trainings):
        _unstack(training, index, parameters, buffers, optimizer)
    return total / len(first.batches.clips)


def _require_equal(trainings: Sequence[Training]) -> None:
    without_seed = {
        dataclasses.replace(t.config, train=dataclasses.replace(t.config.train, seed=0))
        for t in trainings
    }
    rules = {
        "be of a deep encoder without bias, not compiled": can_fuse(trainings[0].config),
        "differ in train.seed alone": len(without_seed) == 1,
        "be on the same clips": len({t.pack.data_hash for t in trainings}) == 1,
        "be equally far": len({t.epoch for t in trainings}) == 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"trainings that are fused must {rule}")


def _stack_optimizers(trainings: Sequence[Training], parameters: Tensors) -> torch.optim.AdamW:
    """One optimiser of stacked parameters that goes on where those of the trainings are."""
    optimizer = build_optimizer(trainings[0].config.train, parameters.values())
    for name, stacked in parameters.items():
        owners = [(t.optimizer, t.loss.get_parameter(name)) for t in trainings]
        states = [
            own.state[parameter] for own, parameter in owners if own and parameter in own.state
        ]
        if states:  # all have stepped, equally often
            optimizer.state[stacked] = {
                key: x.clone() if key == _STEP else torch.stack([state[key] for state in states])
                for key, x in states[0].items()
            }
    return optimizer


@torch.no_grad()
def _unstack(
    training: Training,
    index: int,
    parameters: Tensors,
    buffers: Tensors,
    optimizer: torch.optim.AdamW,
) -> None:
    """Bring one training's network and optimiser to where the stacked ones are."""
    assert training.optimizer
    for name, stacked in parameters.items():
        own = training.loss.get_parameter(name)
        own.copy_(stacked[index])
        training.optimizer.state[own] = {  # laid out as the parameter, which the optimiser asks for
            key: x.clone() if key == _STEP else torch.empty_like(own).copy_(x[index])
            for key, x in optimizer.state[stacked].items()
        }
    for name, stacked in buffers.items():
        training.loss.get_buffer(name).copy_(stacked[index])
    set_lr(training.optimizer, optimizer.param_groups[0]["lr"])
