"""What others published for the DCASE 2020 Task 2 development set, each with what it rests on.

AUC and pAUC in %, means over machine ids, in the order of `table2.MACHINE_TYPES`. They are no
like-for-like figures: read the protocol. Reproductions have differed by 2 to 5 points.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A system that this project does not contain, or somebody else's run of one that it does."""

    name: str
    auc: tuple[float, float, float, float]
    pauc: tuple[float, float, float, float] | None
    protocol: str
    source: str


PUBLISHED = (
    Published(
        name="mimimi, the reference implementation",
        auc=(83.43, 87.15, 92.35, 85.22),
        pauc=None,
        protocol="pooled over ids, one random crop per clip, network chosen by its test AUC",
        source="marcpinet/mimimi, README (its column of the paper's figures is shifted by one "
        "machine type; the paper's rows here are the paper's own)",
    ),
    Published(
        name="DCASE 2020 baseline, autoencoder",
        auc=(65.16, 72.59, 84.99, 66.46),
        pauc=(52.59, 60.00, 66.93, 50.60),
        protocol="one network per type, last epoch",
        source="y-kawagu/dcase2020_task2_baseline, README",
    ),
    Published(
        name="AEGAN-AD (ICASSP 2023)",
        auc=(77.01, 81.26, 86.50, 77.60),
        pauc=None,
        protocol="one network per type, its score chosen per type by the test labels",
        source="its README",
    ),
    Published(
        name="STgram-MFN (ICASSP 2022)",
        auc=(94.04, 91.94, 99.55, 99.64),
        pauc=(88.97, 81.75, 97.61, 98.44),
        protocol="one network for 41 ids of six types, whole clips, checkpoint chosen by test AUC",
        source="its README and code",
    ),
    Published(
        name="Noisy-ArcMix, TASTgram-MFN (ICASSP 2024)",
        auc=(98.32, 95.44, 99.53, 99.95),
        pauc=(95.34, 85.99, 97.50, 99.74),
        protocol="one network for 41 ids of six types, whole clips, chosen by held-out normals",
        source="its README and code",
    ),
)
