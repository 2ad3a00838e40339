"""How many trials share a GPU where `resources.gpu` is auto: measured before the first one.

On a GPU of the cluster, whichever is free, the configuration of the space that needs most memory
takes its first steps and scores some clips. Not run on a GPU so far.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import optuna
import ray
import torch

from mimimi_core.config import ConfigError, TrialConfig
from mimimi_core.costs import train_gib
from mimimi_core.pack import Pack, open_pack
from mimimi_core.scoring import WINDOWS_PER_BATCH
from mimimi_core.training import NonFiniteLossError, Training
from search.config import SamplerConfig, SpaceFile, boundary_values
from search.samplers import build_sampler
from search.shared_files import SharedFiles
from search.space import Params, Space

_MOST = 8  # trials on one GPU
_SAFETY = 0.9  # of a GPU's memory; the rest is for what no trial has shown yet
_N_DRAWN = 8
_GIB = 2**30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """Of a GPU, in bytes."""

    needed: int  # by a process with one training, its CUDA context included
    total: int
    name: str = "GPU"

    @property
    def n_trials(self) -> int:
        """How many fit, at least one and at most `_MOST`."""
        return max(1, min(_MOST, math.floor(_SAFETY * self.total / self.needed)))


def share_of_gpu(
    space: SpaceFile,
    packs: Mapping[str, Pack],
    shared_packs: Mapping[str, str],
    files: SharedFiles,
    measure: Callable[[TrialConfig, str, str], Memory] | None = None,
) -> float:
    """What one trial gets of a GPU: 1, 1/2, ... 1/8.

    Args:
        space: Its parameters, and the memory that its constraints allow.
        packs: Of all machine types; the one with most clips is taken.
        shared_packs: The same, as `files` names them.
        files: Of all nodes.
        measure: Of a configuration on a pack of a root of files; by default on the cluster.

    Returns:
        1 if nothing could be measured, with a warning.
    """
    machine_type = max(packs, key=lambda name: len(packs[name].samples))
    try:
        config = dearest(space, len(packs[machine_type].machine_ids))
        memory = (measure or _on_the_cluster)(config, files.root, shared_packs[machine_type])
    except Exception as error:  # noqa: BLE001 - whatever it is, trials can do without, and tell
        reason = str(error).strip().splitlines()[-1:]  # Ray's errors tell a traceback before
        logger.warning("each trial gets a GPU, for memory was not measured: %s", *reason or "?")
        return 1.0
    logger.info(
        "a trial needs up to %.2f of the %.1f GiB of %s (measured with %d channels, batches of "
        "%d): %d share one",
        memory.needed / _GIB,
        memory.total / _GIB,
        memory.name,
        config.network.channels,
        config.train.batch_size,
        memory.n_trials,
    )
    return math.floor(1e4 / memory.n_trials) / 1e4  # Ray counts in such steps, and might round up


def dearest(space: SpaceFile, n_ids: int) -> TrialConfig:
    """The configuration that needs most memory to train, as far as it is found in a moment.

    The dearest of some drawn at random and the paper's, then one parameter after the other at the
    end of its range that makes it dearer still. What `constraints.train_gib` forbids is left out.

    Raises:
        ConfigError: None fits.
    """
    compiled = Space(space.parameters)
    limit = space.constraints.train_gib or math.inf
    sampler, _ = build_sampler(SamplerConfig(name="random"), seed=0)
    asked = optuna.create_study(sampler=sampler)
    drawn = [compiled.suggest(asked.ask()) for _ in range(_N_DRAWN)]
    best: tuple[float, Params] = (-1.0, {})  # closed-form systems need 0.0

    def consider(params: Params) -> None:
        nonlocal best
        with suppress(ConfigError):
            gib = train_gib(TrialConfig.from_params(params), n_ids)
            if best[0] < gib <= limit:
                best = (gib, params)

    for params in [*drawn, compiled.locate({})]:
        if params is not None:
            consider(params)
    for name, parameter in space.parameters.items():
        if name in best[1]:
            for value in boundary_values(parameter):
                consider({**best[1], name: value})
    if not best[1]:
        raise ConfigError(f"none of {_N_DRAWN} configurations fits")
    return TrialConfig.from_params(best[1])


def memory_of(config: TrialConfig, pack: Pack, device: torch.device) -> Memory:
    """What a process that does nothing but this training holds of a GPU at most.

    Its clips and its context are included; whatever else the GPU holds counts as context.
    """
    hold_most(config, pack, device)
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    needed = context + torch.cuda.max_memory_reserved(device)
    return Memory(needed, total, torch.cuda.get_device_name(device))


def hold_most(config: TrialConfig, pack: Pack, device: torch.device) -> Training:
    """A training after two steps, of which the second has Adam's moments, and some scores."""
    training = Training(config, pack, device, "normal_log_likelihood")  # which any pack allows
    training.batches.clips = training.batches.clips[: 2 * config.train.batch_size]
    training.train_steps()
    with suppress(NonFiniteLossError):  # its rate may be too high, its memory is the same
        # As many as are scored at once, for a clip has one window at least.
        training.scores(np.arange(min(WINDOWS_PER_BATCH, len(pack.names))))
    return training


def _on_the_cluster(config: TrialConfig, root: str, pack: str) -> Memory:
    """Wait for a GPU that is free."""
    probe = ray.remote(num_gpus=1, max_retries=0)(_probe)  # whose process ends with it
    logger.info("waiting for a free GPU, to measure what a trial needs of it")
    memory: Memory = ray.get(probe.remote(config, root, pack))
    return memory


def _probe(config: TrialConfig, root: str, pack: str) -> Memory:
    """In a process of its own, on a worker that has a GPU to itself."""
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU where Ray has one")
    return memory_of(config, open_pack(SharedFiles(root).fetch(pack)), torch.device("cuda"))
