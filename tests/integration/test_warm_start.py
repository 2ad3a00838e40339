"""What a search begins with, from a real registry."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from mimimi_core.config import TrialConfig
from search.registry import Registry, model_name
from search.space import DEFAULTS
from search.tracking import Tracker, check, open_client
from search.warm_start import offers
from tests.model_fixtures import make_detector

pytestmark = pytest.mark.integration


def test_the_paper_then_the_own_champion_then_others(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    check(uri)
    registry = Registry(uri)
    tracker = Tracker(uri, tmp_path / "artifacts", "s", {})
    assert offers(registry, "fan", 9) == [("the paper's setting", DEFAULTS)]
    params = {}
    for machine_type in ("valve", "fan", "pump"):
        detector = make_detector()
        params[machine_type] = detector.members[0].config.to_params()
        folder = tmp_path / machine_type
        detector.save(folder)
        run = tracker.parent_run(machine_type)
        version = registry.register(machine_type, folder, run, tags={}, metrics={})
        if machine_type != "pump":  # which has a model, but no champion
            registry.set_champion(machine_type, version)
    found = offers(registry, "fan", 9)
    assert [origin for origin, _ in found] == [
        "the paper's setting",
        "champion of fan, version 1",
        "champion of valve, version 1",
    ]
    assert found[1][1] == params["fan"]
    assert TrialConfig.from_params(found[2][1]) == TrialConfig.from_params(params["valve"])
    assert [origin for origin, _ in offers(registry, "fan", 0)] == [
        "the paper's setting",
        "champion of fan, version 1",
    ]


def test_who_reads_a_champion_s_settings_takes_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_detector().save(tmp_path)
    registry = SimpleNamespace(
        champion=lambda machine_type: (1, {}),
        machine_types=lambda: ["fan"],
        download=lambda *args: tmp_path,
    )
    monkeypatch.setattr("mimimi_core.detector.pick_device", lambda: pytest.fail("took a device"))
    assert len(offers(registry, "fan", 0)) == 2


def test_more_than_a_page_of_types_is_read(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    check(uri)
    names = [f"type_{number:03d}" for number in range(102)]
    for name in names:
        open_client(uri).create_registered_model(model_name(name))
    assert Registry(uri).machine_types() == names
