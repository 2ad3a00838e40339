import numpy as np
import pytest
import torch

from mimimi_core.config import TrialConfig
from mimimi_core.training import Training
from tests.bench import phase
from tests.bench.phase import NORMAL, ROWS, draw_pack, interval, observe, summarise, train

TINY = {"network.channels": 2, "network.depth": 3, "frontend.n_frames": 16}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase, "N_TRAIN", 2)
    monkeypatch.setattr(phase, "SMALL", TINY)


def test_only_the_jitter_tells_clips_of_one_number_apart() -> None:
    pack, conditions = draw_pack("whine", 0, 1)
    of = {
        condition: pack.samples[start : start + n].astype(float)
        for condition, start, n in zip(conditions, pack.starts, pack.lengths, strict=True)
    }  # of the last id
    assert 0 < np.std(of["jitter 0.1"] - of["jitter 0"]) < np.std(of["jitter 1"] - of["jitter 0"])
    spectra = {c: np.abs(np.fft.rfft(x))[:2000] for c, x in of.items()}  # below 500 Hz
    alike = np.corrcoef(spectra["jitter 0"], spectra["jitter 1"])[0, 1]
    assert alike > 0.9 > np.corrcoef(spectra["jitter 0"], spectra[NORMAL])[0, 1]
    assert set(pack.splits[conditions != NORMAL]) == {"val"}
    assert list(pack.labels) == [int(c != NORMAL) for c in conditions]


def test_what_is_observed_is_what_the_network_computes() -> None:
    pack, _ = draw_pack("valve", 0, 1)
    params = {**ROWS["complex_attention"].params, **TINY}
    training = Training(TrialConfig.from_params(params), pack)
    clips = pack.select("val")
    nll, weights = observe(training, clips)
    assert set(nll) == {"magnitude", "complex", "total"}
    np.testing.assert_allclose(nll["total"], training.scores(clips).nll, rtol=1e-6)
    assert weights is not None
    assert weights.shape == (len(clips), 8)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    with torch.no_grad():  # one branch silenced: all weight goes to the other
        last = training.network.get_submodule("attention.reduce")
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0] * 4 + [100.0] * 4))
    _, leaning = observe(training, clips)
    assert leaning is not None
    np.testing.assert_allclose(leaning[:, 4:].sum(1), 1, rtol=1e-6)


def test_a_network_without_attention_has_no_share() -> None:
    pack, conditions = draw_pack("whine", 0, 2)
    tables = [train(name, pack, conditions, 0, 1) for name in ROWS]
    assert [set(table) & {"share", "lean", "complex_head"} for table in tables] == [
        set(),
        {"complex_head"},
        {"share", "lean", "complex_head"},
    ]
    for table in tables:
        assert set(table["total"]) == set(phase.CONDITIONS["whine"])
        assert 0 <= table["accuracy"][NORMAL] <= 1


def test_differences_are_paired_by_seed() -> None:
    aucs = {"magnitude": (0.5, 0.7), "complex": (0.6, 0.8)}
    outcomes: phase.Outcomes = {
        "valve": {
            name: [{"total": {fault: auc for fault in phase.CONDITIONS["valve"]}} for auc in values]
            for name, values in aucs.items()
        }
    }
    said = summarise(outcomes)
    assert said["auc_magnitude"]["valve"]["leak"][0] == pytest.approx(0.6)
    assert said["difference_complex_magnitude"]["valve"]["leak"] == pytest.approx((0.1, 0.1, 0.1))
    assert "difference_complex_attention_complex" not in said


def test_the_interval_is_students() -> None:
    # 2.776 is Student's quantile of four degrees of freedom, 2.5^0.5 the spread of 1..5
    assert interval(np.arange(1.0, 6.0)) == pytest.approx((3.0, 1.0368, 4.9632), abs=1e-4)
