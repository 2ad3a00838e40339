"""Space files: a broken rule is refused in one line that names file, key, rule and value."""

from pathlib import Path
from typing import Any

import pytest

from search.config import SpaceError, load_space

SPACES = sorted(Path("spaces").glob("*.yaml"))
STUDY = "study: {trials: 2, epochs: 3}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def write_parameters(folder: Path, *lines: str) -> Path:
    return write(folder, STUDY + "parameters:\n" + "".join(f"  {line}\n" for line in lines))


def refusal(path: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(SpaceError) as caught:
        load_space(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_file_in_spaces_loads(path: Path) -> None:
    space = load_space(path)
    assert space.study.trials >= 1
    assert space.parameters


def test_the_three_spaces_of_the_readme_are_there() -> None:
    assert {path.stem for path in SPACES} >= {"smoke", "complex", "paper"}


def test_options_of_the_command_line_replace_the_study_section(tmp_path: Path) -> None:
    path = write_parameters(tmp_path, "train.lr: {kind: fixed, value: 0.1}")
    space = load_space(path, {"trials": 7, "seed": 5})
    assert (space.study.trials, space.study.epochs, space.study.seed) == (7, 3, 5)
    with pytest.raises(SpaceError) as caught:  # no fault of the file
        load_space(path, {"trials": 0})
    assert str(caught.value) == "--trials: must be greater than or equal to 1, got 0"
    assert "study.trials" in refusal(write(tmp_path, STUDY.replace("2", "0")), {"seed": 5})


@pytest.mark.parametrize(
    ("parameter", "names"),
    [
        ("train.lr: {kind: float, low: 3, high: 1}", ["low must be <= high", "low 3", "high 1"]),
        (
            "train.lr: {kind: float, low: 0.0, high: 1.0, log: true}",
            ["low must be > 0 when log is true", "0.0"],
        ),
        ("network.channels: {kind: int, low: 9, high: 4}", ["low must be <= high", "9"]),
        ("network.channels: {kind: int, low: 0, high: 4, log: true}", ["low must be > 0", "0"]),
        ("network.channels: {kind: int, low: 4, high: 9, step: 2}", ["multiple of step (2)", "9"]),
        ("network.channels: {kind: int, low: 4, high: 8, step: 0}", ["step must be > 0", "0"]),
        (
            "train.lr: {kind: float, low: 0.1, high: 1.0, log: true, step: 0.1}",
            ["step cannot be combined with log", "0.1"],
        ),
        (
            "train.lr: {kind: float, low: 0.1, high: 1e+300, step: 1e-300}",
            ["step must be larger, got 1e-300", "high 1e+300"],
        ),
        pytest.param(
            f"train.batch_size: {{kind: int, low: 2, high: {10**400}, step: 2}}",
            ["step must be larger, got 2", "low 2 and high 1000"],
            id="400 digits",
        ),
        ("train.lr: {kind: float, low: 0.1, high: .inf}", ["high", "must be a finite", "inf"]),
        ("train.lr: {kind: float, low: .nan, high: 1.0}", ["low", "must be a finite", "nan"]),
        ("train.lr: {kind: float, low: 0.1, high: 1.0, step: .nan}", ["step", "finite", "nan"]),
        ("train.lr: {kind: categorical, choices: [0.1, .inf]}", ["choices.1", "finite", "inf"]),
        ("train.lr: {kind: fixed, value: .inf}", ["value", "must be", "finite", "inf"]),
        ("train.lr: {kind: float, high: 1.0}", ["train.lr.low is missing"]),
        ("train.lr: {kind: float, low: 0.1, hihg: 1.0}", ["train.lr.hihg is no known"]),
        ("train.lr: {kind: float, low: a, high: 1.0}", ["train.lr.low", "valid number", "'a'"]),
        ("network.channels: {kind: int, low: true, high: 2}", ["channels.low", "integer", "True"]),
        ("network.channels: {kind: int, low: 1.5, high: 2}", ["channels.low", "integer", "1.5"]),
        ("train.lr: {low: 0.1, high: 1.0}", ["train.lr.kind is missing", "float, int"]),
        ("train.lr: {kind: real, low: 0.1}", ["train.lr.kind must be one of", "float", "'real'"]),
        ("train.lr: 0.1", ["train.lr", "must be", "dictionary", "0.1"]),
        ("network.depth: {kind: categorical, choices: []}", ["choices", "at least 1", "[]"]),
        ("network.depth: {kind: categorical, choices: [4, 4]}", ["choices must differ", "[4, 4]"]),
        ("network.depth: {kind: categorical, choices: [4, null]}", ["choices.1", "None"]),
        ("network.depth: {kind: categorical, choices: [4, 5.0]}", ["of type int", "5.0"]),
        ("network.depth: {kind: fixed, value: '4'}", ["of type int", "'4'"]),
        ("network.depth: {kind: int, low: 1, high: 4}", ["network.depth must be >= 3", "1"]),
        ("frontend.normalization: {kind: fixed, value: loud}", ["one of", "'rms'", "'loud'"]),
        ("network.chanels: {kind: int, low: 1, high: 2}", ["network.chanels is no", "channels"]),
        ("train.epochs: {kind: int, low: 1, high: 9}", ["train.epochs", "study.epochs"]),
        ("train.seed: {kind: int, low: 1, high: 9}", ["train.seed", "study.seed"]),
        ("frontend.sample_rate: {kind: fixed, value: 8000}", ["frontend.sample_rate", "packed"]),
    ],
)
def test_a_parameter_that_breaks_a_rule_is_refused(
    tmp_path: Path, parameter: str, names: list[str]
) -> None:
    message = refusal(write_parameters(tmp_path, parameter))
    assert "parameters." in message
    assert [name for name in names if name not in message] == [], message


@pytest.mark.parametrize(
    ("first", "condition", "names"),
    [
        ("network.attention: {kind: bool}", "network.attentoin: true", ["'network.attentoin'"]),
        ("network.attention: {kind: bool}", "network.attention: 1", ["[False, True]", "1"]),
        ("network.attention: {kind: bool}", "network.attention: null", ["or a list", "None"]),
        ("network.attention: {kind: bool}", "network.attention: []", ["list of these, not", "[]"]),
        ("network.attention: {kind: bool}", "network.attention: [.nan]", ["finite", "[nan]"]),
        ("network.attention: {kind: bool}", "network.attention: {a: 1}", ["or a list", "{'a': 1}"]),
        (
            "frontend.n_fft: {kind: categorical, choices: [512, 1024]}",
            "frontend.n_fft: 2048",
            ["[512, 1024]", "2048"],
        ),
        ("network.attention: {kind: fixed, value: false}", "network.attention: true", ["[False]"]),
        ("train.lr: {kind: float, low: 0.1, high: 1}", "train.lr: 0.1", ["train.lr is float"]),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(
    tmp_path: Path, first: str, condition: str, names: list[str]
) -> None:
    second = f"network.attention_expansion: {{kind: int, low: 1, high: 2, when: {{{condition}}}}}"
    message = refusal(write_parameters(tmp_path, first, second))
    assert "parameters.network.attention_expansion.when" in message
    assert "_check_scalar" not in message
    assert [name for name in names if name not in message] == [], message


def test_a_condition_on_a_later_parameter_is_refused(tmp_path: Path) -> None:
    path = write_parameters(
        tmp_path,
        "augment.mask_width: {kind: int, low: 4, high: 8, when: {augment.mask: true}}",
        "augment.mask: {kind: bool}",
    )
    message = refusal(path)
    assert "parameters.augment.mask_width.when" in message
    assert "listed before it, got 'augment.mask'" in message


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("parameters: {train.lr: {kind: fixed, value: 0.1}}", ["study is missing"]),
        ("study: {epochs: 3}\nparameters: {}", ["study.trials is missing"]),
        (STUDY, ["parameters is missing"]),
        (STUDY + "parameters: {}", ["parameters", "at least 1", "{}"]),
        (STUDY + "paramters: {}", ["paramters is no known key"]),
        ("study: {trials: 2.0, epochs: 3}", ["study.trials", "integer", "2.0"]),
        ("study: {trials: true, epochs: 3}", ["study.trials", "integer", "True"]),
        ("study: {trials: 2, epochs: 0}", ["study.epochs", "1", "0"]),
        ("study: []", ["study", "must be", "[]"]),
        (STUDY + "sampler: {name: oracle}", ["sampler.name", "'tpe'", "'oracle'"]),
        (STUDY + "sampler: {startup_trials: 0}", ["sampler.startup_trials", "1", "0"]),
        (STUDY + "scheduler: {name: genie}", ["scheduler.name", "'asha'", "'genie'"]),
        (STUDY + "scheduler: {reduction_factor: 1.000001}", ["or equal to 1.1", "1.000001"]),
        (STUDY + "resources: {cpu: 0}", ["resources.cpu", "0"]),
        (STUDY + "resources: {gpu: some}", ["resources.gpu", "auto", "'some'"]),
        (STUDY + "resources: {gpu: -1}", ["resources.gpu", "0, a share", "-1"]),
        (STUDY + "resources: {gpu: 1.5}", ["resources.gpu", "a whole number", "1.5"]),
        (STUDY + "resources: {gpu: 0.00001}", ["resources.gpu", "from 0.0001 to 1", "1e-05"]),
        (STUDY + "resources: {gpu: .nan}", ["resources.gpu", "from 0.0001 to 1", "nan"]),
        (STUDY + "resources: {cpu: 0.00001}", ["resources.cpu", "0.0001", "1e-05"]),
        (STUDY + "confirmation: {fused: maybe}", ["confirmation.fused", "'auto', True", "'maybe'"]),
    ],
)
def test_a_section_that_breaks_a_rule_is_refused(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    message = refusal(write(tmp_path, text))
    assert [name for name in names if name not in message] == [], message


def test_asha_cannot_wait_longer_than_a_trial_lasts(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        STUDY + "scheduler: {grace_epochs: 4}\nparameters: {train.lr: {kind: fixed, value: 0.1}}\n",
    )
    assert "scheduler.grace_epochs must be <= study.epochs (3), got 4" in refusal(path)
    assert load_space(path, {"epochs": 4}).study.epochs == 4


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "7\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "must hold the keys study and parameters" in refusal(write(tmp_path, text))


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    line = "train.lr: {kind: fixed, value: 0.1}"
    message = refusal(write_parameters(tmp_path, line, line.replace("0.1", "0.2")))
    assert "key 'train.lr' stands twice" in message
    assert "line 4" in message
    assert "'study' stands twice" in refusal(write(tmp_path, STUDY + STUDY))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.yaml")
    assert "directory" in refusal(tmp_path)
    path = write(tmp_path, STUDY)
    path.write_bytes(b"study: \xff\xfe\xfa")
    assert "no valid YAML" in refusal(path)
    assert "no valid YAML" in refusal(write(tmp_path, "study: {trials: ["))
    assert "no valid YAML" in refusal(write(tmp_path, "study: !!python/object/apply:os.abort []"))


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = write_parameters(
        tmp_path,
        "train.lr: {kind: float, low: 1e-4, high: 1, log: true}",
        "train.weight_decay: {kind: float, low: 0, high: 1E-1}",
    )
    lr, decay = load_space(path).parameters.values()
    assert (lr.low, lr.high) == (1e-4, 1.0)
    assert (decay.low, decay.high) == (0.0, 0.1)


@pytest.mark.parametrize(
    ("number", "value"),
    [("1:30", "90"), ("-1:30", "-90"), ("1:30.5", "90.5"), ("010", "8"), ("+0_7", "7")],
)
def test_a_number_that_yaml_takes_for_another_is_refused_with_its_line(
    tmp_path: Path, number: str, value: str
) -> None:
    path = write_parameters(tmp_path, "train.lr:", f"  {{kind: fixed, value: {number}}}")
    message = refusal(path)
    assert "must have no colon and no leading zero" in message
    assert f"got {number}, which YAML takes for {value}: write" in message
    assert "line 4, column 26" in message


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("2020-13-45", ["valid timestamp", "'2020-13-45'"]),
        ("!!timestamp noon", ["valid timestamp", "'noon'"]),
        ("0x_", ["valid int", "'0x_'"]),
        ("!!int abc", ["valid int", "'abc'"]),
        ("!!int ''", ["valid int", "''"]),
        ("!!bool abc", ["valid bool", "'abc'"]),
        pytest.param("9" * 5000, ["valid int", "'99999"], id="5000 digits"),
    ],
)
def test_a_value_that_is_not_what_it_looks_like_is_refused_with_its_line(
    tmp_path: Path, value: str, names: list[str]
) -> None:
    path = write_parameters(tmp_path, "train.lr:", f"  {{kind: fixed, value: {value}}}")
    message = refusal(path)
    assert "line 4, column 26" in message
    assert len(message) < 300 + len(str(path))
    assert [name for name in names if name not in message] == [], message


@pytest.mark.parametrize("gpu", ["auto", "0", "0.0001", "0.5", "1", "1.0", "2"])
def test_a_trial_may_have_a_share_of_a_gpu_or_whole_ones(tmp_path: Path, gpu: str) -> None:
    path = write_parameters(tmp_path, "train.lr: {kind: fixed, value: 0.5}")
    path.write_text(path.read_text() + f"resources: {{gpu: {gpu}}}\n")
    assert str(load_space(path).resources.gpu).removesuffix(".0") == gpu.removesuffix(".0")


def test_conditions_can_be_shared_by_yaml_merge(tmp_path: Path) -> None:
    path = write_parameters(
        tmp_path,
        "augment.mask: &flag {kind: bool}",
        "augment.noise: {<<: *flag, when: {augment.mask: true}}",
    )
    assert load_space(path).parameters["augment.noise"].kind == "bool"
