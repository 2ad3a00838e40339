"""Optuna samplers by name."""

import hashlib
from collections.abc import Callable

import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from search.config import SamplerConfig

# Whoever makes a study takes its sampler from here; Optuna would announce each study and trial.
optuna.logging.set_verbosity(optuna.logging.WARNING)

_FACTORIES: dict[str, Callable[[SamplerConfig, int], BaseSampler]] = {
    "random": lambda config, seed: RandomSampler(seed=seed),
    # Optuna 5's defaults, multivariate with a constant liar: quality survives parallel trials.
    "tpe": lambda config, seed: TPESampler(seed=seed, n_startup_trials=config.startup_trials),
    # The next two model parameters that every trial has; conditional ones they draw at random.
    "gp": lambda config, seed: GPSampler(
        seed=seed, n_startup_trials=config.startup_trials, warn_independent_sampling=False
    ),
    "cmaes": lambda config, seed: CmaEsSampler(
        seed=seed, n_startup_trials=config.startup_trials, warn_independent_sampling=False
    ),
    "nsgaii": lambda config, seed: NSGAIISampler(seed=seed),
    "grid": lambda config, seed: RandomSampler(seed=seed),  # is given every configuration
}


def build_sampler(config: SamplerConfig, seed: int) -> BaseSampler:
    """The sampler that `config` names."""
    return _FACTORIES[config.name](config, seed)


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
