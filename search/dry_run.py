"""Prints what a search would do, without packing data, starting Ray or asking a tracker."""

import optuna

from mimimi_core.config import ConfigError, TrialConfig
from mimimi_core.network import network_cost
from search.config import SpaceFile
from search.costs import excesses
from search.data import Manifest
from search.samplers import build_sampler, derive_seed
from search.space import Space, describe

_N_SAMPLES = 3
_TRAIN_FACTOR = 3  # forward and backward pass over the forward pass


def describe_search(space_file: SpaceFile, manifest: Manifest) -> list[str]:
    """Lines: the compiled space, the data, three sampled trials with their cost, resources."""
    study, space = space_file.study, Space(space_file.parameters)
    width = max(map(len, space.parameters))
    lines = ["space:"]
    lines += [f"  {name:<{width}}  {describe(p)}" for name, p in space.parameters.items()]
    lines.append("data:")
    n_train = {}
    for machine_type, clips in manifest.items():
        ids = sorted({clip.machine_id for clip in clips})
        n_train[machine_type] = sum(clip.part != "labelled" and clip.label == 0 for clip in clips)
        labelled = sum(clip.part != "train" for clip in clips)
        lines.append(
            f"  {machine_type}: {', '.join(ids)}; {n_train[machine_type]} clips to train on, "
            f"{labelled} labelled or unsplit"
        )
    n_ids = max(len({clip.machine_id for clip in clips}) for clips in manifest.values())
    clips_per_epoch = max(n_train.values())
    sampler, _ = build_sampler(space_file.sampler, derive_seed(study.seed, "dry run"))
    asked = optuna.create_study(direction="maximize", sampler=sampler)
    limits = space_file.constraints.limits
    for number in range(_N_SAMPLES):
        params = space.suggest(asked.ask())
        lines.append(f"sampled trial {number + 1}: {_cost(params, n_ids, clips_per_epoch)}")
        broken = [name for name, by in excesses(limits, params, n_ids).items() if by > 0]
        if broken:
            lines.append(f"  would not be run: it breaks {', '.join(broken)} of constraints")
        lines += [f"  {name:<{width}}  {value}" for name, value in params.items()]
    gpu = space_file.resources.gpu
    lines += [
        f"sampler {space_file.sampler.name}, scheduler {space_file.scheduler.name}, "
        f"seed {study.seed}",
        f"{study.trials} trials of at most {study.epochs} epochs for each of "
        f"{len(manifest)} machine types; a trial takes {space_file.resources.cpu:g} CPU and "
        + ("a share of a GPU if there is one" if gpu == "auto" else f"{gpu:g} GPU"),
    ]
    return lines


def _cost(params: dict[str, object], n_ids: int, clips_per_epoch: int) -> str:
    try:
        config = TrialConfig.from_params(params)
        cost = network_cost(config.network, config.frontend, n_ids)
    except ConfigError as error:
        return f"infeasible, {error}"
    flop = 2 * _TRAIN_FACTOR * cost.macs * clips_per_epoch
    return (
        f"{cost.n_parameters:,} parameters, {cost.macs / 1e9:.2f} GMAC a crop, "
        f"{flop / 1e12:.2f} TFLOP an epoch"
    )
