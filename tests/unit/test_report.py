"""The report as files: a page that needs no network, the same as tables, all trials as CSV."""

import csv
import html
from html.parser import HTMLParser
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search import report
from search.report import main, write_report
from search.report_facts import read_facts
from search.report_sections import Section, build_sections
from search.report_summary import key_facts
from search.storages import JOURNAL
from tests.report_fixtures import (
    OUTCOME,
    add_accidents,
    ask,
    confirm,
    make_full_study,
    make_study,
    open_journal,
    run,
)

FILES = ["report.html", "report.md", "trials.csv"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two machine types, reported on."""
    folder = tmp_path_factory.mktemp("full") / "s"
    make_full_study(folder, "fan")
    make_full_study(folder, "valve", n_trials=12)
    write_report(folder)
    return folder


def text_of(folder: Path, name: str = "report.md") -> str:
    return (folder / "report" / name).read_text()


def facts_in_words(folder: Path) -> dict[str, str]:
    (facts,) = read_facts(folder)
    return dict(key_facts(facts, report.LABEL_FREE_EVIDENCE))


def sections_of(folder: Path) -> dict[str, Section]:
    (facts,) = read_facts(folder)
    return {section.title: section for section in build_sections(facts)}


class Page(HTMLParser):
    """What a page would load, which anchors it links, and the scripts' sizes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.text: list[str] = []
        self._is_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self._is_script = tag in ("script", "style")
        self.loaded += [found[key] for key in ("src", "data", "srcset") if key in found]
        if tag == "link":
            self.loaded.append(found["href"])
        if tag == "a":
            self.links.append(found["href"])
        self.names.append(found.get("id", ""))

    def handle_endtag(self, tag: str) -> None:
        self._is_script = False

    def handle_data(self, data: str) -> None:
        if not self._is_script:
            self.text.append(data)


def test_the_page_loads_nothing_and_links_every_machine_type(full: Path) -> None:
    page = Page(text_of(full, "report.html"))
    assert page.loaded == []
    assert len(page.links) == 2
    assert all(link.removeprefix("#") in page.names for link in page.links)
    figures = [name for name in page.names if name.startswith("figure-")]
    assert len(set(figures)) == len(figures) >= 10


def test_page_and_tables_say_the_same(full: Path) -> None:
    shown = "\n".join(Page(text_of(full, "report.html")).text)
    markdown = text_of(full)
    for facts in read_facts(full):
        for name, value in key_facts(facts, {}):
            assert f"| {name} | {value} |" in markdown
            assert value in shown
        for section in build_sections(facts):
            assert f"### {section.title}" in markdown
            for cell in (*section.text, *section.header, *(c for row in section.rows for c in row)):
                assert cell.replace("|", "\\|") in markdown
                assert cell in shown


def test_every_section_of_a_full_study_is_there(full: Path) -> None:
    titles = [line for line in text_of(full).split("\n## ")[1].splitlines() if line[:3] == "###"]
    assert [title.removeprefix("### ") for title in titles] == [
        "History",
        "Confirmation",
        "Winner on the test clips, per machine id",
        "Survival from epoch to epoch",
        "Cost",
        "Which parameters matter",
        "Pareto front",
        "Each parameter by itself",
        "Parameters together",
        "Figures that need no anomaly, against val_auc",
        "Trials that came to nothing",
    ]


def test_what_trials_say_cannot_break_out_of_its_place(tmp_path: Path) -> None:
    evil = "<script>x()</script>"
    study = make_study(tmp_path / "s", "<b>fan", objective=evil)
    trial = ask(study)
    run(trial, 0.8)
    study.tell(trial.number, 0.8)
    failed = ask(study)
    failed.set_user_attr("reason", f"a | b\n| c {evil}")
    study.tell(failed.number, state=TrialState.FAIL)
    write_report(tmp_path / "s")
    page = text_of(tmp_path / "s", "report.html")
    assert evil not in page
    assert html.escape(evil) in page
    assert "<b>fan" not in page
    (row,) = [line for line in text_of(tmp_path / "s").splitlines() if "a \\| b" in line]
    assert row.startswith("| 1 | failed |")


def test_the_csv_has_a_row_per_trial_with_parameters_and_metrics(full: Path) -> None:
    with (full / "report" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    types = read_facts(full)
    assert len(rows) == sum(len(facts.trials) for facts in types)
    by_key = {(row["machine_type"], int(row["number"])): row for row in rows}
    for facts in types:
        for trial in facts.trials:
            row = by_key[facts.machine_type, trial.number]
            assert (row["state"], row["reason"]) == (trial.state, trial.reason)
            assert row["value"] == ("" if trial.value is None else str(trial.value))
            assert float(row["train.lr"]) == trial.params["train.lr"]
            assert row["network.depth"] == "4"
            assert row["augment.mixing_p"] == str(trial.params.get("augment.mixing_p", ""))
            assert int(row["epochs"]) == trial.epochs
            assert row["seconds"] == (str(trial.seconds) if trial.epochs else "")
            assert row["train_loss"] == str(trial.metrics.get("train_loss", ""))


def test_a_second_report_replaces_the_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    assert write_report(tmp_path / "s") == tmp_path / "s" / "report"
    assert "0: " not in text_of(tmp_path / "s")
    run(ask(study), 0.7, 2)
    write_report(tmp_path / "s")
    assert "1: 1 running" in text_of(tmp_path / "s")
    assert sorted(path.name for path in (tmp_path / "s" / "report").iterdir()) == FILES
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [JOURNAL, "report"]


def test_a_study_that_has_only_accidents_is_reported(tmp_path: Path) -> None:
    add_accidents(make_study(tmp_path / "s"))
    write_report(tmp_path / "s")
    words = facts_in_words(tmp_path / "s")
    assert words["trials"] == "4: 1 infeasible, 2 failed, 1 running"
    assert words["best of the search"] == "no complete trial"
    assert words["confirmed winner"] == "not chosen yet"
    assert words["test AUC of the winner"] == "not tested yet"
    assert words["champion"] == "not decided yet"
    assert words["retried"].startswith("1: ")
    (text,) = sections_of(tmp_path / "s")["Which parameters matter"].text
    assert text == "0 complete trials are too few to tell: it takes 10."


def test_a_study_that_searched_nothing_has_no_importance(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for _ in range(12):
        trial = study.ask()
        trial.set_user_attr("fixed", {"network.depth": 4})
        study.tell(trial.number, 0.8)
    (text,) = sections_of(tmp_path / "s")["Which parameters matter"].text
    assert text == "No parameter was searched."


def test_the_facts_at_the_top(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    trial = ask(study)
    run(trial, 0.9)
    study.tell(trial.number, 0.875)
    confirm(study, 0, 0.85, 0.80)
    study.set_user_attr("outcome", OUTCOME)
    words = facts_in_words(tmp_path / "s")
    assert words["best of the search"].startswith("val_auc 0.875 [0.799, 0.949], trial 0 after 9")
    assert words["confirmed winner"] == (
        "trial 0: 0.825, mean of 2 fresh seeds (0.800 to 0.850, standard deviation 0.035)"
    )
    assert words["the search's best flattered itself by"] == (
        "+0.050 (trial 0: 0.875 in the search, 0.825 with fresh seeds)"
    )
    assert words["test AUC of the winner"] == "0.800 [0.700, 0.900], 106 clips"
    assert words["champion"] == "version 2: this winner"
    assert words["cost"] == "0.09 core-hours for the trials, 0.2 for the confirmation"


def test_who_judges_with_the_winner_is_named(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    study.tell(ask(study).number, 0.8)
    study.set_user_attr("outcome", OUTCOME | {"members": [0, 2, 5]})
    words = facts_in_words(tmp_path / "s")
    assert words["confirmed winner"].endswith("; trials 2, 5 judge with it")
    write_report(tmp_path / "s")
    for name in ("report.md", "report.html"):
        assert "trials 2, 5 judge with it" in text_of(tmp_path / "s", name)
    study.set_user_attr("outcome", OUTCOME | {"members": [0]})
    assert "judge" not in facts_in_words(tmp_path / "s")["confirmed winner"]


@pytest.mark.parametrize(
    ("version", "champion_version", "champion"),
    [
        (4, 3, "version 3 was kept"),
        (None, 3, "version 3, not challenged (--promote never)"),
        (None, None, "none"),
    ],
)
def test_a_winner_that_changed_nothing(
    tmp_path: Path, version: int | None, champion_version: int | None, champion: str
) -> None:
    study = make_study(tmp_path / "s")
    study.tell(ask(study).number, 0.8)
    findings = {"champion_version": champion_version, "promoted": False, "test_auc": None}
    outcome = {"winner": 0, "version": version, "findings": findings}
    study.set_user_attr("outcome", outcome)
    words = facts_in_words(tmp_path / "s")
    assert words["champion"] == champion
    assert words["test AUC of the winner"].startswith("none: no machine id")
    assert words["confirmed winner"] == "trial 0, not confirmed by fresh seeds"
    assert words["the search's best flattered itself by"].startswith("unknown")


def test_a_finalist_that_later_trials_displaced_is_not_said_to_win(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for value in (0.80, 0.90):
        study.tell(ask(study), value)
    confirm(study, 0, 0.81)  # when it was the best
    confirm(study, 1, 0.75)
    study.set_user_attr("outcome", OUTCOME | {"winner": 1})
    section = sections_of(tmp_path / "s")["Confirmation"]
    assert [row[0] for row in section.rows] == ["0", "1 (winner)"]
    (text,) = section.text
    assert "highest mean of those that are still among the best wins" in text


def test_a_winner_of_which_a_seed_failed_is_not_called_confirmed(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    study.tell(ask(study).number, 0.8)
    confirm(study, 0, 0.7, None)
    study.set_user_attr("outcome", OUTCOME | {"is_confirmed": False})
    words = facts_in_words(tmp_path / "s")
    assert words["confirmed winner"] == "trial 0, not confirmed by fresh seeds"


def test_a_choice_without_labels_carries_what_was_measured_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study(tmp_path / "s", objective="id_swap_auc")
    monkeypatch.setattr(report, "LABEL_FREE_EVIDENCE", {})
    name = "chosen without labels"
    assert facts_in_words(tmp_path / "s")[name].endswith(
        "rank correlation with val_auc: not measured"
    )
    monkeypatch.setattr(report, "LABEL_FREE_EVIDENCE", {"id_swap_auc": "0.1 over 9 trials"})
    assert facts_in_words(tmp_path / "s")[name].endswith("with val_auc: 0.1 over 9 trials")
    write_report(tmp_path / "s")
    assert "0.1 over 9 trials" in text_of(tmp_path / "s")
    make_study(tmp_path / "t")
    assert name not in facts_in_words(tmp_path / "t")


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    run(ask(study), 0.8, 3, seconds=None)
    cost = sections_of(tmp_path / "s")["Cost"]
    assert cost.text[0].startswith("No epoch of this study carries its time")
    assert cost.rows[0] == ("running", "1", "3", "not recorded")
    assert facts_in_words(tmp_path / "s")["cost"] == "not recorded"
    run(ask(study), 0.8, 2)
    cost = sections_of(tmp_path / "s")["Cost"]
    assert cost.text[0] == "3 of 5 epochs carry no time and are not counted."
    assert not any("Pruning saved" in text for text in cost.text)


def test_the_command_reports_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path / "s")
    assert main(["--study", "s", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 's' / 'report' / 'report.html'}\n"


@pytest.mark.parametrize("has_journal", [False, True])
def test_the_command_refuses_a_study_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has_journal: bool
) -> None:
    if has_journal:
        open_journal(tmp_path / "nothing")
    assert main(["--study", "nothing", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert str(tmp_path / "nothing") in captured.err
    assert not (tmp_path / "nothing" / "report").exists()


def test_the_command_says_where_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path / "s")
    (tmp_path / "s" / "report").touch()
    assert main(["--study", "s", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 's' / 'report'} must be a folder that can be writ")
