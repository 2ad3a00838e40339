"""Whether attention could prefer a branch: the bench of phase with branches made unequal.

    python -m tests.bench.attention [--quick]

`tests.bench.phase` finds that the complex network's attention prefers neither branch (Kim, Ho and
Kang, 2021, section III-B). Here one branch is spoilt, so that it tells nothing of the clip, or the
magnitude branch is given real numbers of its own, as it has none in the paper, where both read the
complex encoder. An attention that chooses by what a branch is good for would follow.

    as it is
    complex spoilt: every crop gets the complex branch's channels of another crop of its batch
    magnitude spoilt: likewise
    own magnitudes: the magnitude branch reads a real encoder of |STFT| in place of the complex one

Machine `fan`, its whine jittered by 0.25 rad per hop; seeds, epochs, intervals as in that bench.
Told of each arm: the AUC of every head; the share of the attention's weights that is on the complex
branch, before and after training; and what the total head reads whatever the attention says,
`drop_without`: how much the accuracy of ids falls if a branch is spoilt for scoring alone.
"""

import argparse
import json
from collections.abc import Callable
from time import process_time

import numpy as np
import torch
from torch import Tensor

from mimimi_core.complex_nn import complex_magnitude
from mimimi_core.network import ComplexNetwork, build_encoder
from mimimi_core.training import Training
from tests.bench.phase import NORMAL, TOTAL, Table, draw_pack, interval, observe, train

FAULT = "jitter 0.25"
BRANCHES = ("magnitude", "complex")


def _network(training: Training) -> ComplexNetwork:
    assert isinstance(training.network, ComplexNetwork)
    return training.network


def spoil(branch: str) -> Callable[[Training], None]:
    """Exchange the outputs of a branch between the crops of each batch."""

    def change(training: Training) -> None:
        generator = torch.Generator().manual_seed(0)
        layer = getattr(_network(training), f"{branch}_conv")
        layer.register_forward_hook(
            lambda _, __, out: out[torch.randperm(len(out), generator=generator)]
        )

    return change


def own_magnitudes(training: Training) -> None:
    """Give the magnitude branch an encoder in real numbers, which is trained with the rest."""
    network, config = _network(training), training.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        encoder = build_encoder(config.network, is_complex=False)
    network.own_encoder = encoder.to(training.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert training.optimizer is not None
    training.optimizer.add_param_group({"params": list(encoder.parameters())})
    spectra = list[Tensor]()
    network.register_forward_pre_hook(lambda _, args: spectra.append(args[0]))
    network.magnitude_conv.register_forward_pre_hook(
        lambda _, __: (encoder(complex_magnitude(spectra.pop())),)
    )


ARMS: dict[str, Callable[[Training], None]] = {
    "as it is": lambda _: None,
    "complex spoilt": spoil("complex"),
    "magnitude spoilt": spoil("magnitude"),
    "own magnitudes": own_magnitudes,
}


def measure(arm: str, seed: int, epochs: int, n_test: int) -> dict[str, float]:
    """The figures of one training."""
    pack, conditions = draw_pack("fan", seed, n_test)
    clips = pack.select("val")
    normal = clips[conditions[clips] == NORMAL]
    trained = list[Training]()
    before = list[float]()

    def change(training: Training) -> None:
        ARMS[arm](training)
        trained.append(training)
        before.append(_share(training, normal))

    table: Table = train("complex_attention", pack, conditions, seed, epochs, change)
    accuracy = table["accuracy"][NORMAL]
    row = {
        "share_before": before[0],
        "share": table["share"][NORMAL],
        "accuracy": accuracy,
        "auc": table[TOTAL][FAULT],
        **{f"auc_{branch}_head": table[f"{branch}_head"][FAULT] for branch in BRANCHES},
    }
    for branch in BRANCHES:
        row[f"drop_without_{branch}"] = accuracy - _accuracy_without(trained[0], normal, branch)
    return row


def _share(training: Training, clips: np.ndarray) -> float:
    weights = observe(training, clips)[1]
    assert weights is not None
    return float(weights[:, weights.shape[1] // 2 :].sum(1).mean())


def _accuracy_without(training: Training, clips: np.ndarray, branch: str) -> float:
    """Accuracy of the total head with the half of a branch in F_t from another crop."""
    generator = torch.Generator().manual_seed(0)
    half = BRANCHES.index(branch)

    def exchange(_: object, args: tuple[Tensor]) -> tuple[Tensor]:
        parts = list(args[0].chunk(2, dim=1))
        order = torch.randperm(len(args[0]), generator=generator)
        parts[half] = parts[half][order]
        return (torch.cat(parts, dim=1),)

    hook = _network(training).attention.register_forward_pre_hook(exchange)
    try:
        nll = observe(training, clips)[0][TOTAL]
    finally:
        hook.remove()
    return float((nll.argmin(1) == training.pack.id_index[clips]).mean())


def main() -> None:
    """Train all arms; print a row each, then the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attention")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 2 epochs")
    quick = parser.parse_args().quick
    n_seeds, epochs, n_test = (2, 2, 4) if quick else (5, 40, 24)
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(n_seeds):
        for arm in ARMS:
            started = process_time()
            row = measure(arm, seed, epochs, n_test)
            rows[arm].append(row)
            figures = ", ".join(f"{name} {value:.2f}" for name, value in row.items())
            print(f"seed {seed}, {arm}: {figures}; {process_time() - started:.0f} s", flush=True)
    said = {
        arm: {name: interval(np.array([row[name] for row in of_arm])) for name in of_arm[0]}
        for arm, of_arm in rows.items()
    }
    for arm, figures in said.items():
        print(f"\n{arm}")
        for name, (mean, low, high) in figures.items():
            print(f"  {name:24} {mean:.3f} [{low:.3f}, {high:.3f}]")
    print()
    print(json.dumps({"seeds": n_seeds, "epochs": epochs, "fault": FAULT, "arms": said}))


if __name__ == "__main__":
    main()
