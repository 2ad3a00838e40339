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

# Whoever makes a study takes its sampler from here. Optuna would announce each study and trial, and
# warn of what its Gaussian process gets over by itself.
optuna.logging.set_verbosity(optuna.logging.ERROR)

# Trials from which the Gaussian process is left: its time for a suggestion grows with their cube.
LARGE = 100

_FACTORIES: dict[str, Callable[[int | None, int], BaseSampler]] = {
    "random": lambda startup, seed: RandomSampler(seed=seed),
    "gp": lambda startup, seed: GPSampler(
        seed=seed, n_startup_trials=startup or 5, warn_independent_sampling=False
    ),
    # Optuna 5's defaults, multivariate with a constant liar: quality survives parallel trials.
    "tpe": lambda startup, seed: TPESampler(seed=seed, n_startup_trials=startup or 10),
    # Draws categorical parameters at random.
    "cmaes": lambda startup, seed: CmaEsSampler(
        seed=seed, n_startup_trials=startup or 10, warn_independent_sampling=False
    ),
    "nsgaii": lambda startup, seed: NSGAIISampler(seed=seed),
    "grid": lambda startup, seed: RandomSampler(seed=seed),  # is given every configuration
}
# These model only what all trials have, and only complete ones.
_WANT_WHOLE = ("gp", "cmaes")


def build_sampler(config: SamplerConfig, seed: int, n_trials: int = 0) -> tuple[BaseSampler, bool]:
    """The sampler that suggests after so many trials, and whether it wants whole ones.

    See `View.draw` for what whole trials are.
    """
    name = config.name
    if name == "auto":
        name = "gp" if n_trials < LARGE else "tpe"
    return _FACTORIES[name](config.startup_trials, seed), name in _WANT_WHOLE


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
