"""Takes the steps of several trainings at once that differ in nothing but their seed.

A network of this size keeps a GPU waiting for the next kernel to be asked for. Stacked by
`torch.func`, S networks ask for as many kernels as one; their convolutions become grouped ones.
Only the steps are shared: each training draws from its own generators in its own order, and has its
own metrics, patience and checkpoint, as if it were alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from mimimi_core.config import TrialConfig
from mimimi_core.precision import autocast
from mimimi_core.training import NonFiniteLossError, Training, build_optimizer, set_lr

Tensors = dict[str, Tensor]
Outcome = dict[str, float] | NonFiniteLossError | torch.OutOfMemoryError
_STEP = "step"  # of Adam's state the one tensor that all have in common


def can_fuse(config: TrialConfig) -> bool:
    """Whether trainings of these settings can be stepped as one: those of the deep encoder.

    Not with a bias before a batch norm, as MobileNetV2 has: its gradient is zero but for rounding,
    which Adam scales up to steps of the full size, so there results would be alike, not the same.
    Nor compiled, for a CUDA graph waits for no host and takes no statistics that come from outside.
    """
    network = config.network
    return network.kind == "deep_encoder" and not network.bias and not config.train.compile


def run_epoch(trainings: Sequence[Training]) -> list[Outcome]:
    """What `Training.run_epoch` of each returns or raises, all steps having been taken together.

    Losses, weights and statistics are those of separate trainings up to the rounding of sums that
    a grouped convolution adds in another order; what is drawn is the same bit for bit. One training
    alone is stepped as always. If memory does not suffice for all, halves of them take turns; for
    whom it does not suffice alone, the error is the outcome, and the others have theirs.

    Args:
        trainings: Equal but for `train.seed`, all after the same epoch, none of them done.

    Raises:
        ValueError: They are not equal.
        torch.OutOfMemoryError: What was learned together does not fit once more; no training is
            of any use then.
    """
    if len(trainings) == 1:
        return [_outcome_of(trainings[0].run_epoch)]
    losses = _try_steps(trainings)
    if losses is None:
        middle = len(trainings) // 2
        return run_epoch(trainings[:middle]) + run_epoch(trainings[middle:])
    return [
        _outcome_of(partial(training.finish_epoch, loss))
        for training, loss in zip(trainings, losses, strict=True)
    ]


def _outcome_of(act: Callable[[], dict[str, float]]) -> Outcome:
    try:
        return act()
    except (NonFiniteLossError, torch.OutOfMemoryError) as error:
        return error.with_traceback(None)  # whose frames would keep the memory


class _Stack(NamedTuple):
    """Several trainings after an epoch's steps: what they learned, and their mean losses `(S,)`."""

    parameters: Tensors
    buffers: Tensors
    optimizer: torch.optim.AdamW
    losses: Tensor


def _try_steps(trainings: Sequence[Training]) -> Tensor | None:
    """Mean losses `(S,)`; None if they do not fit into memory, all being as they were before."""
    try:
        stack = _take_steps(trainings)
    except torch.OutOfMemoryError:
        return None
    return _hand_out(stack, trainings)


def train_steps(trainings: Sequence[Training]) -> Tensor:
    """`Training.train_steps` of each; mean losses `(S,)`, still on the device.

    Nothing in here waits for the device. Networks and optimisers change at the very end.

    Raises:
        ValueError: The trainings are not equal but for their seeds, or not equally far.
    """
    return _hand_out(_take_steps(trainings), trainings)


def _take_steps(trainings: Sequence[Training]) -> _Stack:
    """The steps of an epoch, on copies of the trainings."""
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
    return _Stack(parameters, buffers, optimizer, total / len(first.batches.clips))


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


def _hand_out(stack: _Stack, trainings: Sequence[Training]) -> Tensor:
    """Bring each training to where its part of the stack is; returns their mean losses."""
    for index, training in enumerate(trainings):
        _unstack(stack, index, training)
    return stack.losses


@torch.no_grad()
def _unstack(stack: _Stack, index: int, training: Training) -> None:
    """Bring one training's network and optimiser to where the stacked ones are."""
    assert training.optimizer
    for name, stacked in stack.parameters.items():
        own = training.loss.get_parameter(name)
        own.copy_(stacked[index])
        training.optimizer.state[own] = {  # laid out as the parameter, which the optimiser asks for
            key: x.clone() if key == _STEP else torch.empty_like(own).copy_(x[index])
            for key, x in stack.optimizer.state[stacked].items()
        }
    for name, stacked in stack.buffers.items():
        training.loss.get_buffer(name).copy_(stacked[index])
    set_lr(training.optimizer, stack.optimizer.param_groups[0]["lr"])
