"""Table II of Kim, Ho and Kang (EUSIPCO 2021) and its yardsticks: settings, cost, published AUCs.

One thing differs in the rows of Giri et al.: the paper combines spectra of several machine ids
linearly, we their waveforms. The transform is linear, so this is the same for complex spectra, but
not for magnitudes and log-mel spectra: they are of sounds that were added up, phases and all. The
paper's way would take a transform of every id's crop instead of one of their sum.

python -m mimimi_core.table2     every system with its parameters and operations, as Markdown
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimimi_core.config import TrialConfig
from mimimi_core.network import network_cost

MACHINE_TYPES = ("fan", "pump", "slider", "valve")
N_IDS = 4  # of each type in the DCASE 2020 development set

_GIRI = {"augment.mixing": True, "augment.mixing_p": 1.0}
_PROPOSED = {"augment.mixing": False}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system of the table."""

    name: str
    params: Mapping[str, Any]  # what tells it from the others; all else is the default
    auc: (
        tuple[float, ...] | None
    )  # published, % per type of MACHINE_TYPES; None where there is none

    @property
    def config(self) -> TrialConfig:
        """Settings of the system; of the training, the paper's."""
        return TrialConfig.from_params(self.params)

    def describes(self, config: TrialConfig) -> bool:
        """Whether a training is of this row, whatever its other settings."""
        found = config.to_params()
        return all(found[name] == value for name, value in self.params.items())


ROWS = (
    Row(
        name="Giri et al., log-mel, MobileNetV2",
        params=_GIRI | {"frontend.kind": "logmel", "network.kind": "mobilenetv2"},
        auc=(80.61, 83.23, 96.26, 91.26),
    ),
    Row(
        name="Giri et al., log-mel, deep encoder",
        params=_GIRI | {"frontend.kind": "logmel", "network.kind": "deep_encoder"},
        auc=(81.92, 89.82, 94.25, 91.65),
    ),
    Row(
        name="Giri et al., magnitude, deep encoder",
        params=_GIRI | {"frontend.kind": "magnitude", "network.kind": "deep_encoder"},
        auc=(84.10, 90.02, 97.95, 92.07),
    ),
    Row(
        name="proposed, magnitude, deep encoder",
        params=_PROPOSED | {"frontend.kind": "magnitude", "network.kind": "deep_encoder"},
        auc=(86.75, 96.72, 97.62, 94.37),
    ),
    Row(
        name="proposed, complex, deep encoder",
        params=_PROPOSED
        | {
            "frontend.kind": "complex",
            "network.kind": "deep_encoder",
            "network.attention": False,
        },
        auc=(87.80, 95.62, 98.02, 94.17),
    ),
    Row(
        name="proposed, complex, deep encoder with attention",
        params=_PROPOSED
        | {"frontend.kind": "complex", "network.kind": "deep_encoder", "network.attention": True},
        auc=(89.55, 96.40, 98.75, 96.87),
    ),
)
YARDSTICKS = (
    Row(
        name="DCASE 2020 autoencoder",
        params={"frontend.kind": "logmel", "network.kind": "autoencoder"},
        auc=(65.16, 72.59, 84.99, 66.46),  # y-kawagu/dcase2020_task2_baseline, README
    ),
    Row(
        name="group MADE",
        params={"frontend.kind": "logmel", "network.kind": "gmade"},
        auc=None,
    ),
    Row(
        name="Mahalanobis, mean log-mel spectrum",
        params={"frontend.kind": "logmel", "network.kind": "mahalanobis"},
        auc=None,
    ),
    Row(
        name="nearest neighbour, mean log-mel spectrum",
        params={"frontend.kind": "logmel", "network.kind": "nearest_neighbour"},
        auc=None,
    ),
)
SYSTEMS = ROWS + YARDSTICKS
ENSEMBLES = {  # name -> its members; scores are z-normalised per id
    "Giri et al., ensemble of both": ("Giri et al., log-mel, MobileNetV2", "group MADE"),
}


def describe() -> list[str]:
    """Lines of a Markdown table; the AUCs are the published ones, in %."""
    lines = [
        f"| system | parameters | MMAC a crop | AUC: {' | '.join(MACHINE_TYPES)} | mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in SYSTEMS:
        cost = network_cost(row.config.network, row.config.frontend, N_IDS)
        figures = ["", "", "", "", ""]
        if row.auc is not None:
            figures = [f"{x:.2f}" for x in (*row.auc, sum(row.auc) / len(row.auc))]
        lines.append(
            f"| {row.name} | {cost.n_parameters:,} | {cost.macs / 1e6:,.1f} | "
            f"{' | '.join(figures)} |"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(describe()))
