"""Promotion in a real registry: records, races, and the command with its rollback."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mimimi_core.comparison import Comparison
from search import promote
from search.champions import (
    Decision,
    challenge,
)
from search.registry import Registry, model_name
from search.tracking import check

pytestmark = pytest.mark.integration

NUMBERS = itertools.count()
LIKELY_EQUAL = Comparison(
    difference=0.01, ci=(-0.01, 0.03), p_better=0.3, p_no_worse=0.1, n_clips=96
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    check(uri)
    return uri


@pytest.fixture(scope="module")
def registry(uri: str) -> Registry:
    return Registry(uri)


@pytest.fixture
def machine_type() -> str:
    return f"type{next(NUMBERS)}"  # the store is shared by all tests


@pytest.fixture
def add_versions(uri: str, machine_type: str, tmp_path: Path) -> Callable[[int], list[int]]:
    """Registers versions that have no weights."""
    client, name = MlflowClient(uri), model_name(machine_type)

    def add(n: int) -> list[int]:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        return [
            int(client.create_model_version(name, tmp_path.as_uri(), tags={"study": "s"}).version)
            for _ in range(n)
        ]

    return add


# -- races ------------------------------------------------------------------------------------


def promote_against(rival: int) -> Decision:
    return Decision(promoted=True, reason="better", against=rival)


def test_the_first_version_meets_nobody(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(1)
    decision = challenge(registry, machine_type, 1, pytest.fail)
    assert decision == Decision(promoted=True, reason="there was no champion")
    number, tags = registry.champion(machine_type) or pytest.fail("no champion")
    assert number == 1
    assert tags["decision"] == "promoted: there was no champion"
    assert (tags["against"], tags["difference"], tags["p_value"]) == ("none", "none", "none")


def test_a_kept_version_is_recorded_too(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(2)
    registry.set_champion(machine_type, 1)
    kept = Decision(promoted=False, reason="why", against=1, comparison=LIKELY_EQUAL)
    assert challenge(registry, machine_type, 2, lambda rival: kept) == kept
    assert registry.champion(machine_type)[0] == 1
    tags = registry.versions(machine_type)[1].tags
    assert tags["decision"] == "kept: why"
    assert tags["against"] == "version 1"
    assert tags["difference"] == "+0.010 [-0.010, +0.030]"
    assert (tags["p_value"], tags["p_value_no_worse"]) == ("0.3000", "0.1000")


def test_a_call_that_was_killed_after_promoting_finds_its_decision(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(2)
    registry.set_champion(machine_type, 1)
    better = Decision(promoted=True, reason="better", against=1, comparison=LIKELY_EQUAL)
    challenge(registry, machine_type, 2, lambda rival: better)
    again = challenge(registry, machine_type, 2, pytest.fail)
    assert (again.promoted, again.reason) == (True, "better")
    assert again.tags() == better.tags()


@pytest.mark.parametrize("has_champion", [True, False])
def test_of_two_that_promote_at_once_the_second_faces_the_first(
    uri: str, machine_type: str, add_versions: Callable[[int], list[int]], has_champion: bool
) -> None:
    """Both have read the old champion before either moves the alias."""
    add_versions(3)
    both_compared = threading.Barrier(2)
    faced: dict[int, list[int | None]] = {2: [], 3: []}

    class Watched(Registry):
        def set_tags(self, machine_type: str, version: int, tags: dict) -> None:  # type: ignore[override]
            if not any(len(rivals) == 2 for rivals in faced.values()):
                faced[version].append(None if tags["against"] == "none" else 1)
                both_compared.wait(20)
            super().set_tags(machine_type, version, tags)

    def run(version: int) -> Decision:
        def compare(rival: int) -> Decision:
            if rival != 1:
                faced[version].append(rival)
            return promote_against(rival)

        return challenge(Watched(uri), machine_type, version, compare)

    registry = Registry(uri)
    if has_champion:
        registry.set_champion(machine_type, 1)
    with ThreadPoolExecutor(2) as pool:
        decisions = dict(zip((2, 3), pool.map(run, (2, 3)), strict=True))
    last = registry.champion(machine_type)[0]
    first = 5 - last
    assert faced[first] == [1 if has_champion else None]
    assert faced[last] == [1 if has_champion else None, first]
    assert decisions[last].against == first
    assert registry.versions(machine_type)[last - 1].tags["against"] == f"version {first}"


def test_many_at_once_leave_an_unbroken_chain(
    uri: str, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    """Every promoted version faced the champion that it replaced: no promotion is lost."""
    versions = add_versions(13)
    Registry(uri).set_champion(machine_type, 1)

    def run(mine: list[int]) -> None:
        registry = Registry(uri)
        for version in mine:
            challenge(registry, machine_type, version, promote_against)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, [versions[n::3] for n in (1, 2, 3)]))
    registry = Registry(uri)
    tags = {v.number: v.tags for v in registry.versions(machine_type)}
    chain = [registry.champion(machine_type)[0]]
    while chain[-1] != 1:
        chain.append(int(tags[chain[-1]]["against"].removeprefix("version ")))
    assert sorted(chain) == versions


def test_the_alias_moves_only_from_whom_it_is_expected_at(
    registry: Registry, machine_type: str, add_versions: Callable[[int], list[int]]
) -> None:
    add_versions(3)
    assert not registry.replace_champion(machine_type, expected=1, version=2)
    assert registry.champion(machine_type) is None
    assert registry.replace_champion(machine_type, expected=None, version=1)
    assert not registry.replace_champion(machine_type, expected=None, version=2)
    assert registry.replace_champion(machine_type, expected=1, version=3)
    assert registry.champion(machine_type)[0] == 3


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def table(
    uri: str, machine_type: str, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., list[str]]]:
    """Runs the command; its lines without the header."""

    def run(*args: str) -> list[str]:
        argv = ["--machine-type", machine_type, "--tracking-uri", uri, *args]
        assert promote.main(argv) == 0
        header, *lines = capsys.readouterr().out.splitlines()
        assert header.split()[:2] == ["version", "when"]
        return lines

    return run


def test_history_and_rollback(
    registry: Registry,
    machine_type: str,
    add_versions: Callable[[int], list[int]],
    table: Callable[..., list[str]],
) -> None:
    add_versions(4)
    registry.set_tags(machine_type, 1, {"trial": "7", "test_auc": "0.912 [0.8, 0.9] (96 clips)"})
    challenge(registry, machine_type, 1, pytest.fail)
    challenge(registry, machine_type, 2, promote_against)
    challenge(registry, machine_type, 3, lambda rival: Decision(promoted=False, reason="not so"))
    lines = table()
    assert [line[0] for line in lines] == [" ", "*", " ", " "]
    assert "s/7" in lines[0]
    assert "0.912 [0.8, 0.9] (96 clips)  promoted  there was no champion" in lines[0]
    assert lines[1].split()[-2:] == ["promoted", "better"]
    assert lines[2].split()[-3:] == ["kept", "not", "so"]
    assert lines[3].split()[-2:] == ["none", "undecided"]

    lines = table("--rollback", "1", "--reason", "false alarms at night")
    assert [line[0] for line in lines] == ["*", " ", " ", " ", "*"]
    assert lines[4].endswith("rolled back  from version 2: false alarms at night")
    assert registry.champion(machine_type)[0] == 1
    table("--rollback", "2", "--reason", "it was the microphone")
    assert registry.champion(machine_type)[0] == 2
    assert len(registry.versions(machine_type)) == 4
    assert registry.versions(machine_type)[0].tags["decision"] == "promoted: there was no champion"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rollback", "3", "--reason", "x"], "must be a version of {}: 1, 2, got 3"),
        (["--rollback", "1", "--reason", "x"], "--rollback 1: it is the champion of {} already"),
        (["--rollback", "2"], "--rollback VERSION needs --reason TEXT"),
        (["--rollback", "2", "--reason", " "], "--rollback VERSION needs --reason TEXT"),
        (["--reason", "x"], "--rollback VERSION needs --reason TEXT"),
        (["--machine-type", "lathe"], "no model of machine type 'lathe' at sqlite:///"),
        (["--tracking-uri", "sqlite:////nowhere/x.db"], "there is no file /nowhere/x.db"),
        (["--tracking-uri", "mlruns"], "tracking URI must start with"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    uri: str,
    registry: Registry,
    machine_type: str,
    add_versions: Callable[[int], list[int]],
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    add_versions(2)
    registry.set_champion(machine_type, 1)
    argv = ["--machine-type", machine_type, "--tracking-uri", uri, *args]
    assert promote.main(argv) == 2
    said = capsys.readouterr()
    assert message.format(machine_type) in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert registry.champion(machine_type)[0] == 1
