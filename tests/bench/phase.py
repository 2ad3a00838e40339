"""Whether the complex network hears what only phase tells: the claim of Kim, Ho and Kang (2021).

    python -m tests.bench.phase [--quick] [--figure PNG]

The generated fan's drive fault lets the phase of a whine walk at random; its strength is the
jitter, rad (standard deviation) per hop of 32 ms. Networks learn ids from normal clips, and are
scored on every jitter and on faults that magnitudes show. All under the same room noise, 6 dB
below the machine, the machine being

    fan: that of the embedded data set, whose ids differ in magnitudes too
    whine: the drive alone, so that ids differ by a few Hz and by nothing else
    valve: a machine of impacts and hisses, without a steady line; for comparing attention only

A seed draws all clips, the first weights and the crops. Faulty clips of one number differ between
jitters by the jitter alone; 0 is no fault, so its AUC must be 0.5. An AUC is the mean over ids.
Intervals: Student's t over seeds, 95 %, so they cover clips and trainings alike, but have no width
where every seed has the same AUC, as 1; differences are paired by seed. No figure selects
anything: all trainings have the same epochs, and the network of the last one counts.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from mimimi_core import table2
from mimimi_core.config import TrialConfig
from mimimi_core.machines import (
    FAULTS,
    MACHINE_IDS,
    MACHINES,
    N_SAMPLES,
    SAMPLE_RATE,
    fan,
    machine_clip,
    record,
    whine,
)
from mimimi_core.metrics import auc_report
from mimimi_core.network import ChannelAttention
from mimimi_core.pack import Pack
from mimimi_core.systems import Logits
from mimimi_core.training import Training

ROWS = dict(zip(("magnitude", "complex", "complex_attention"), table2.ROWS[3:], strict=True))
JITTERS = (0.0, 0.1, 0.25, 0.5, 1.0)  # rad per hop
_JITTERED = tuple(f"jitter {jitter:g}" for jitter in JITTERS)
NORMAL = "normal"
CONDITIONS = {  # of the clips that are scored, beside the normal ones
    "fan": (*_JITTERED, *(fault for fault in FAULTS["fan"] if fault != "drive")),
    "whine": _JITTERED,
    "valve": FAULTS["valve"],
}
NETWORKS = {"fan": tuple(ROWS), "whine": tuple(ROWS), "valve": ("complex_attention",)}
N_TRAIN = 40  # normal clips of each id, as in the embedded data set
# A quarter of the paper's channels and half of its frames, at ten times its rate, fit one core.
SMALL = {"network.channels": 11, "frontend.n_frames": 32, "train.lr": 1e-3}
TOTAL = "total"  # the head that is scored

Table = dict[str, dict[str, float]]  # of one training: figure -> condition -> value
Outcomes = dict[str, dict[str, list[Table]]]  # kind -> network -> a table of each seed


def draw_clip(kind: str, index: int, condition: str, rng: np.random.Generator) -> np.ndarray:
    """One recording, (64000,) int16, of the id with that index."""
    fault = None if condition == NORMAL else condition
    if kind == "valve":
        return machine_clip(kind, MACHINE_IDS[index], rng, fault)
    machine = MACHINES["fan"][index]
    jitter = float(condition.split()[1]) if condition in _JITTERED else None
    if kind == "whine":
        return record(rng, whine(machine, rng, jitter))
    if jitter is None:
        return record(rng, fan(machine, rng, fault))
    return record(rng, fan(machine, rng, "drive", jitter))


def draw_pack(kind: str, seed: int, n_test: int) -> tuple[Pack, np.ndarray]:
    """A seed's clips, in memory; and the condition of each, (n,)."""
    ids = range(len(MACHINE_IDS))
    plan = [("train", NORMAL, index, n) for index in ids for n in range(N_TRAIN)]
    for condition in (NORMAL, *CONDITIONS[kind]):
        plan += [("val", condition, index, n) for index in ids for n in range(n_test)]
    clips = []
    for split, condition, index, number in plan:
        part = 0 if split == "train" else 1 if condition == NORMAL else 2
        rng = np.random.default_rng([seed, part, index, number])
        clips.append(draw_clip(kind, index, condition, rng))
    conditions = np.array([condition for _, condition, _, _ in plan])
    pack = Pack(
        path=Path(),
        machine_type=kind,
        sample_rate=SAMPLE_RATE,
        data_hash="",
        names=tuple(str(row) for row in plan),
        machine_ids=MACHINE_IDS,
        samples=np.concatenate(clips),
        starts=np.arange(len(clips)) * N_SAMPLES,
        lengths=np.full(len(clips), N_SAMPLES),
        id_index=np.array([index for _, _, index, _ in plan]),
        labels=(conditions != NORMAL).astype(np.int64),
        splits=np.array([split for split, _, _, _ in plan]),
        digests=np.arange(len(clips), dtype=np.uint64),
    )
    return pack, conditions


class _UnwatchedTraining(Training):
    """Looks at nothing but what it learns from."""

    def _val_metrics(self) -> dict[str, float]:
        return {}


def train(
    name: str,
    pack: Pack,
    conditions: np.ndarray,
    seed: int,
    epochs: int,
    change: Callable[[Training], None] = lambda _: None,
) -> Table:
    """The figures of one network, to which `change` may do something before it trains.

    Returns:
        `accuracy` of the ids of normal clips; AUC by condition of `total` and of the other heads
        (`magnitude_head`, `complex_head`); the `share` of the attention's weights that is on the
        complex branch for normal clips, and how much larger it is, `lean`, in a condition.
    """
    params = {**ROWS[name].params, **SMALL, "train.epochs": epochs, "train.seed": seed}
    training = _UnwatchedTraining(TrialConfig.from_params(params), pack)
    change(training)
    while not training.is_done:
        training.run_epoch()
    clips = pack.select("val")
    ids, found = pack.id_index[clips], conditions[clips]
    nll, weights = observe(training, clips)
    is_normal = found == NORMAL
    table = {"accuracy": {NORMAL: float((nll[TOTAL].argmin(1) == ids)[is_normal].mean())}}
    for head, values in nll.items():
        own = values[np.arange(len(ids)), ids]
        figure = head if head == TOTAL else f"{head}_head"
        table[figure] = {}
        for condition in CONDITIONS[pack.machine_type]:
            kept = is_normal | (found == condition)
            report = auc_report(own[kept], ~is_normal[kept] * 1, ids[kept], MACHINE_IDS, 1)
            assert report.auc is not None  # both labels are there of every id
            table[figure][condition] = report.auc
    if weights is not None:  # the channels of the complex branch are the latter half of F_t's
        share = weights[:, weights.shape[1] // 2 :].sum(1)
        table["share"] = {NORMAL: float(share[is_normal].mean())}
        table["lean"] = {
            condition: float(share[found == condition].mean() - share[is_normal].mean())
            for condition in CONDITIONS[pack.machine_type]
        }
    return table


def observe(
    training: Training, clips: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """What the heads and the attention say of clips of equal length, means over their windows.

    Returns:
        Negative log-likelihood (n, C) by head; attention weights (n, 2C), None without attention.
    """
    logits, weights = list[Logits](), list[Tensor]()
    hooks = [training.network.register_forward_hook(lambda _, __, out: logits.append(out))]
    for module in training.network.modules():
        if isinstance(module, ChannelAttention):  # whose weights are the softmax of its last layer
            hooks.append(module.reduce.register_forward_hook(lambda _, __, x: weights.append(x)))
    try:
        training.scores(clips)
    finally:
        for hook in hooks:
            hook.remove()
    nll = {
        head: _per_clip([-torch.log_softmax(x.double(), dim=1) for x in outputs], len(clips))
        for head, outputs in zip(Logits._fields, zip(*logits, strict=True), strict=True)
        if outputs[0] is not None
    }
    shares = [torch.softmax(x.float(), dim=1) for x in weights]
    return nll, _per_clip(shares, len(clips)) if shares else None


def _per_clip(batches: list[Tensor], n_clips: int) -> np.ndarray:
    values = torch.cat(batches).double()
    return values.reshape(n_clips, -1, values.shape[1]).mean(1).numpy()


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds, and Student's 95 % interval of it."""
    mean, n = float(values.mean()), len(values)
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def summarise(outcomes: Outcomes) -> dict[str, Any]:
    """Means and intervals, `[mean, low, high]`, by figure, kind and condition."""

    def column(kind: str, name: str, figure: str, condition: str) -> np.ndarray:
        return np.array([table[figure][condition] for table in outcomes[kind][name]])

    said: dict[str, Any] = {}
    for kind, tables in outcomes.items():
        for name, of_seeds in tables.items():
            for figure, by_condition in of_seeds[0].items():
                key = f"auc_{name}" if figure == TOTAL else f"{name}_{figure}"
                said.setdefault(key, {})[kind] = {
                    c: interval(column(kind, name, figure, c)) for c in by_condition
                }
        for other, better in combinations(ROWS, 2):
            if better in tables and other in tables:
                said.setdefault(f"difference_{better}_{other}", {})[kind] = {
                    c: interval(column(kind, better, TOTAL, c) - column(kind, other, TOTAL, c))
                    for c in CONDITIONS[kind]
                }
    return said


def print_tables(said: Mapping[str, Any]) -> None:
    """Print tables of each kind: AUCs, their differences, and the rest."""
    groups: dict[str, list[str]] = {}
    for figure in said:
        first = figure.partition("_")[0]
        groups.setdefault(first if first in ("auc", "difference") else "", []).append(figure)
    for kind, conditions in CONDITIONS.items():
        for figures in groups.values():
            columns = {figure: said[figure][kind] for figure in figures if kind in said[figure]}
            if columns:
                print(f"\n{kind:12}" + "".join(f"  {figure:>22}" for figure in columns))
            for condition in (NORMAL, *conditions):
                row = f"{condition:12}"
                for figure, column in columns.items():
                    cell = column.get(condition)
                    text = "{:.3f} [{:.3f}, {:.3f}]".format(*cell) if cell else ""
                    row += f"  {text:>{max(22, len(figure))}}"
                if any(condition in column for column in columns.values()):
                    print(row)
    print()


def draw(said: Mapping[str, Any], path: Path) -> None:
    """Picture the AUC over the jitter, a panel per kind, with the intervals as bands."""
    import matplotlib.pyplot as plt  # slow to load, and only a picture needs it

    kinds = list(said["auc_magnitude"])
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 3.6), squeeze=False)
    for panel, kind in zip(panels[0], kinds, strict=True):
        for name, marker in zip(ROWS, "so^", strict=True):
            by_condition = said[f"auc_{name}"][kind]
            mean, low, high = np.array([by_condition[c] for c in _JITTERED]).T
            panel.plot(JITTERS, mean, marker=marker, label=name.replace("_", " + "))
            panel.fill_between(JITTERS, low, high, alpha=0.2)
        panel.axhline(0.5, color="grey", linewidth=0.8)
        panel.set(title=kind, xlabel="jitter of the phase, rad per hop", ylim=(0.4, 1.02))
    panels[0][0].set_ylabel("AUC, mean over ids")
    panels[0][-1].legend(loc="center right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train and score everything; print tables, then the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.phase")
    parser.add_argument("--quick", action="store_true", help="fan alone, 2 seeds of 8 epochs")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="picture of AUC over jitter")
    args = parser.parse_args()
    kinds, n_seeds, epochs, n_test = tuple(CONDITIONS), 5, 40, 24
    if args.quick:
        kinds, n_seeds, epochs, n_test = ("fan",), 2, 8, 8
    torch.set_num_threads(1)
    outcomes: Outcomes = {kind: {name: [] for name in NETWORKS[kind]} for kind in kinds}
    for kind in kinds:
        for seed in range(n_seeds):
            pack, conditions = draw_pack(kind, seed, n_test)
            for name in NETWORKS[kind]:
                started = process_time()
                table = train(name, pack, conditions, seed, epochs)
                outcomes[kind][name].append(table)
                row = [f"{condition} {auc:.2f}" for condition, auc in table[TOTAL].items()]
                took = f"{process_time() - started:.0f} s"
                print(f"{kind}, seed {seed}, {name}: {', '.join(row)}; {took}", flush=True)
    said = summarise(outcomes)
    print_tables(said)
    if args.figure:
        draw(said, args.figure)
    shares = {
        kind: [table["share"][NORMAL] for table in tables["complex_attention"]]
        for kind, tables in outcomes.items()
    }
    print(f"share of attention on the complex branch, by seed: {shares}")
    about = {"seeds": n_seeds, "epochs": epochs, "train_clips": N_TRAIN, "test_clips": n_test}
    print(json.dumps(said | about | {"shares_by_seed": shares, "settings": SMALL}))


if __name__ == "__main__":
    main()
