"""What a trial would cost, by the names of the space file; found before it is run."""

from collections.abc import Callable, Mapping
from functools import cache

from mimimi_core import costs
from mimimi_core.config import ConfigError, TrialConfig
from search.config import CostName
from search.space import Params

_MEASURES: dict[CostName, Callable[[TrialConfig, int], float]] = {
    "parameters": costs.n_parameters,
    "gmac_per_s": costs.gmac_per_s,
    "latency_ms": costs.latency_ms,
    "train_gib": costs.train_gib,
}


def cost_of(name: CostName, params: Params, n_ids: int) -> float:
    """One figure of a trial that fits; measured once per process for equal settings."""
    return _measure(name, TrialConfig.from_params(params), n_ids)


def excesses(limits: Mapping[CostName, float], params: Params, n_ids: int) -> dict[str, float]:
    """By how much a trial exceeds each limit, as a share of it; 1 for settings that do not fit.

    Returns:
        Name -> excess, as Optuna's constraints: the trial is feasible if none is above 0.
    """
    try:
        TrialConfig.from_params(params)
    except ConfigError:
        return {"settings": 1.0}
    return {name: cost_of(name, params, n_ids) / limit - 1 for name, limit in limits.items()}


@cache
def _measure(name: CostName, config: TrialConfig, n_ids: int) -> float:
    return _MEASURES[name](config, n_ids)
