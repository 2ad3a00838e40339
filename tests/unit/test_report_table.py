"""The systems of a study beside what others published."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from mimimi_core import table2
from mimimi_core.published import PUBLISHED
from search.data import JOINT
from search.report import main, write_report
from search.report_facts import read_facts
from search.report_table import build_table, csv_text, picture, table_sections
from search.studies import FINALISTS
from tests.report_fixtures import ask, make_study, run


def figures(auc: float | None, *seeds: float, n_clips: int = 90) -> dict[str, Any]:
    return {
        "auc": auc,
        "ci": None if auc is None else [auc - 0.1, auc + 0.05],
        "pauc": None if auc is None else auc - 0.2,
        "pauc_ci": None if auc is None else [auc - 0.3, auc - 0.1],
        "worst_auc": auc,
        "n_clips": n_clips,
        "without_auc": ["id_06"],
        "auc_of_seeds": list(seeds),
        "pauc_of_seeds": [seed - 0.2 for seed in seeds],
    }


def system(number: int | None, name: str | None, auc: float | None) -> dict[str, Any]:
    seeds = [] if auc is None else [auc - 0.01, auc, auc + 0.01]
    return {
        "number": number,
        "system": name,
        "test": figures(auc, *seeds),
        "dev": figures(auc and auc + 0.02, *seeds, n_clips=180),
    }


def write_study(folder: Path, machine_type: str, *systems: dict[str, Any]) -> None:
    study = make_study(folder, machine_type)
    for _ in systems:
        trial = ask(study)
        study.tell(trial, run(trial, 0.8), state=TrialState.COMPLETE)
    study.set_user_attr(FINALISTS, {"tested": {}, "systems": list(systems)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    last, first = table2.ROWS[5].name, table2.ROWS[0].name
    ensemble = next(iter(table2.ENSEMBLES))
    systems = [system(0, last, 0.9), system(1, None, 0.6), system(2, first, 0.7)]
    write_study(tmp_path / "s", "fan", *systems, system(None, ensemble, 0.75))
    systems = [system(0, last, 0.8), system(1, None, None), system(2, first, 0.6)]
    write_study(tmp_path / "s", "mixer", *systems)
    return tmp_path / "s"


def cells(folder: Path) -> dict[tuple[str, str, str, str], dict[str, str]]:
    table = build_table(read_facts(folder))
    assert table is not None
    keys = ("source", "clips", "machine_type", "system")
    rows = csv.DictReader(io.StringIO(csv_text(table)))
    return {tuple(row[key] for key in keys): row for row in rows}  # type: ignore[misc]


def test_the_systems_stand_in_the_order_of_the_paper(folder: Path) -> None:
    table = build_table(read_facts(folder))
    assert table is not None
    names = [line.system for line in table.of("test", "this study")]
    assert names[:3] == [table2.ROWS[0].name, table2.ROWS[5].name, *table2.ENSEMBLES]
    assert all("train.lr=" in name for name in names[3:])  # no name of its own, so its parameters


def test_every_figure_has_its_interval_seeds_and_clips(folder: Path) -> None:
    row = cells(folder)["this study", "test", "fan", table2.ROWS[5].name]
    assert float(row["auc"]) == 0.9
    assert (float(row["auc_low"]), float(row["auc_high"])) == pytest.approx((0.8, 0.95))
    assert float(row["auc_seed_std"]) == pytest.approx(0.01)
    assert (row["n_seeds"], row["n_clips"]) == ("3", "90")
    figures = [float(row[f"pauc{end}"]) for end in ("", "_low", "_high", "_seed_std")]
    assert figures == pytest.approx([0.7, 0.6, 0.8, 0.01])


def test_published_figures_stand_by_the_machine_types_that_they_are_of(folder: Path) -> None:
    found = cells(folder)
    published = {key[3] for key in found if key[0] == "published"}
    assert published == {f"{row.name} (Kim et al.)" for row in table2.ROWS} | {
        other.name for other in PUBLISHED
    }
    assert not [key for key in found if key[0] == "published" and key[2] == "mixer"]
    ours = found["published", "dev", "fan", f"{table2.ROWS[5].name} (Kim et al.)"]
    assert float(ours["auc"]) == pytest.approx(0.8955)
    assert ours["auc_low"] == ""  # nobody published one


def test_the_reference_repositorys_row_of_the_paper_is_not_repeated() -> None:
    """Its README shifts the paper's figures by one machine type."""
    assert table2.ROWS[5].auc == (89.55, 96.40, 98.75, 96.87)
    for other in PUBLISHED:
        assert set(other.auc).isdisjoint(table2.ROWS[5].auc)


def test_what_cannot_be_computed_is_left_empty(folder: Path) -> None:
    table = build_table(read_facts(folder))
    assert table is not None
    sections = {s.title: s for s in table_sections(table, b"")}
    rows = {row[0]: row for row in sections["Systems on the test clips"].rows}
    header = sections["Systems on the test clips"].header
    assert header[:4] == ("system", "fan", "mixer", "mean")
    assert rows[table2.ROWS[5].name][1:4] == (
        "90.0 [80.0, 95.0] ±1.0",
        "80.0 [70.0, 85.0] ±1.0",
        "85.0 [77.9, 88.5]",
    )
    assert rows[table2.ROWS[5].name][4] == "70.0 [60.0, 80.0] ±1.0"  # pAUC
    (ensemble,) = table2.ENSEMBLES
    assert rows[ensemble][1:4] == ("75.0 [65.0, 80.0] ±1.0", "", "")


def test_the_joint_classifier_counts_in_no_mean(tmp_path: Path) -> None:
    for machine_type, auc in (("fan", 0.9), (JOINT, 0.5), ("pump", 0.8)):
        write_study(tmp_path / "s", machine_type, system(0, table2.ROWS[5].name, auc))
    table = build_table(read_facts(tmp_path / "s"))
    assert table is not None
    ours, _, published = table_sections(table, b"")[1:4]
    mean = ours.header.index("mean")
    assert ours.rows[0][mean].startswith("85.0 [")
    row = next(row for row in published.rows if row[0] == f"{table2.ROWS[5].name} (Kim et al.)")
    assert row[mean] == "93.0"  # of 89.55 and 96.40
    alone = build_table([facts for facts in read_facts(tmp_path / "s") if facts.systems][1:2])
    assert alone is not None
    (row,) = table_sections(alone, b"")[1].rows
    assert row[1:3] == ("50.0 [40.0, 55.0] ±1.0", "")


def test_the_protocol_says_what_the_figures_rest_on(folder: Path) -> None:
    table = build_table(read_facts(folder))
    assert table is not None
    text = "\n".join(table.protocol)
    assert (
        "fan: 90 test clips, 180 dev clips; 3 seeds of each system; "
        "without AUC and left out on test: id_06; without AUC and left out on dev: id_06." in text
    )
    assert "without brackets where all resamplings agree, as where every anomaly scores" in text
    assert "Selection, fan: the best 3 of 4 complete trials" in text  # an ensemble is no trial
    assert "Selection, mixer: none, every complete trial is here." in text
    assert "Linear combination (Giri et al.): waveforms are combined, spectra in the paper" in text


def test_the_selection_is_told_of_the_trials_that_there_were(tmp_path: Path) -> None:
    systems = [system(number, None, 0.8) for number in range(3)]
    write_study(tmp_path / "s", "fan", *systems, system(None, "ensemble", 0.8))
    study = make_study(tmp_path / "s", "pump")
    for _ in range(12):
        study.tell(ask(study), 0.8)
    note = {"tested": {}, "complete": 9, "systems": systems}
    study.set_user_attr(FINALISTS, note)
    table = build_table(read_facts(tmp_path / "s"))
    assert table is not None
    text = "\n".join(table.protocol)
    assert "Selection, fan: the best 3 of 4 complete" in text  # not noted by earlier versions
    assert "Selection, pump: the best 3 of 9 complete" in text


def test_the_report_has_the_table_and_prints_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--study", folder.name, "--out", str(folder.parent)]) == 0
    printed = capsys.readouterr().out
    assert "90.0 [80.0, 95.0] ±1.0" in printed
    assert printed.splitlines()[-1].endswith("report.html")
    report = folder / "report"
    for name in ("systems.md", "report.md", "report.html"):
        assert "90.0 [80.0, 95.0] ±1.0" in (report / name).read_text()
    assert (report / "systems.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (report / "report.html").read_text()


def test_the_picture_has_a_panel_per_type_and_a_row_per_system(folder: Path) -> None:
    table = build_table(read_facts(folder))
    assert table is not None
    panels = picture(table).axes
    assert [axes.get_title() for axes in panels] == ["fan", "mixer"]
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels == [line.system for line in table.lines if line.clips == "dev"]


def test_dollars_in_a_name_are_no_formula(tmp_path: Path) -> None:
    write_study(tmp_path / "s", "$fan^$", system(0, "$x^$", 0.9))
    table = build_table(read_facts(tmp_path / "s"))
    assert table is not None
    picture(table).savefig(tmp_path / "systems.png")


def test_without_tested_finalists_there_is_no_table(tmp_path: Path) -> None:
    make_study(tmp_path / "s")
    assert build_table(read_facts(tmp_path / "s")) is None
    assert not (write_report(tmp_path / "s") / "systems.md").exists()


def test_systems_of_one_name_are_all_there_and_told_apart(tmp_path: Path) -> None:
    name = table2.ROWS[0].name
    aucs = (0.9, 0.8, 0.7)
    write_study(tmp_path / "s", "fan", *[system(n, name, auc) for n, auc in enumerate(aucs)])
    table = build_table(read_facts(tmp_path / "s"))
    assert table is not None
    lines = table.of("test", "this study")
    assert len({line.system for line in lines}) == 3
    assert all(line.system.startswith(f"{name} (train.lr=") for line in lines)
    assert {line.cells["fan"].auc.value for line in lines} == set(aucs)
