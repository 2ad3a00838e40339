"""Reads a space file (YAML) into typed, frozen objects; every mistake is refused with its path.

Keys of `parameters` are the field names of `mimimi_core.config` with a dot.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mimimi_core.config import ConfigError, ConflictError, TrialConfig, known_params
from search.yaml_file import read_yaml

_SCALAR = "true, false, a finite number or a text"


def _is_scalar(value: Any) -> bool:
    is_scalar = isinstance(value, (bool, int, float, str))
    return is_scalar and not (isinstance(value, float) and not math.isfinite(value))


def _check_scalar(value: Any) -> Any:
    if not _is_scalar(value):
        raise ValueError(f"must be {_SCALAR}, got {value!r}")
    return value


Scalar = Annotated[bool | int | float | str, BeforeValidator(_check_scalar)]
# The study sets these itself, so they are no parameters.
STUDY_OWNED = {
    "train.epochs": "study.epochs",
    "train.seed": "study.seed",
    "frontend.sample_rate": "the rate at which clips are packed, 16 kHz",
}


class SpaceError(ValueError):
    """A space file or an option breaks its rule; the message names file, key, rule and value."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Parameter(_Model):
    # Earlier parameters and the value, or several, that make this one active.
    when: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] = {}

    @field_validator("when", mode="before")
    @classmethod
    def _check_values(cls, when: Any) -> Any:
        """Before pydantic, which would tell each kind of value apart in its path."""
        for name, value in when.items() if isinstance(when, dict) else ():
            values = value if isinstance(value, list) else [value]
            if not values or not all(_is_scalar(v) for v in values):
                raise ValueError(
                    f"{name} must be {_SCALAR}, or a list of these, not empty, got {value!r}"
                )
        return when

    @property
    def conditions(self) -> dict[str, tuple[Scalar, ...]]:
        """Earlier parameters, each with all values that make this one active."""
        return {k: tuple(v) if isinstance(v, list) else (v,) for k, v in self.when.items()}


class FloatParameter(_Parameter):
    """A real number in low..high."""

    kind: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @model_validator(mode="after")
    def _check(self) -> "FloatParameter":
        _check_range(self.low, self.high, self.log, self.step)
        return self


class IntParameter(_Parameter):
    """A whole number in low..high."""

    kind: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int | None = None

    @model_validator(mode="after")
    def _check(self) -> "IntParameter":
        _check_range(self.low, self.high, self.log, self.step)
        return self


class CategoricalParameter(_Parameter):
    """One of several values without an order."""

    kind: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1)

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: list[Scalar]) -> list[Scalar]:
        if len(set(choices)) < len(choices):  # 1, 1.0 and true are one value to Optuna as well
            raise ValueError(f"choices must differ, got {choices}")
        return choices


class BoolParameter(_Parameter):
    """On or off."""

    kind: Literal["bool"]


class FixedParameter(_Parameter):
    """One value for all trials."""

    kind: Literal["fixed"]
    value: Scalar


_KINDS = "float, int, categorical, bool, fixed"
Parameter = Annotated[
    FloatParameter | IntParameter | CategoricalParameter | BoolParameter | FixedParameter,
    Field(discriminator="kind"),
]


class SamplerConfig(_Model):
    """Who proposes parameters."""

    # auto is gp, the Gaussian process, and tpe once a study is large
    name: Literal["auto", "gp", "tpe", "random", "cmaes", "nsgaii", "grid"] = "auto"
    # Random ones before anything is modelled; by default 5, and 10 for tpe and cmaes. The others
    # model nothing and have no use for it.
    startup_trials: int | None = Field(default=None, ge=1)
    warm_start: bool = False  # the paper's setting and present champions first, where space allows


class SchedulerConfig(_Model):
    """Who ends trials early: successive halving whose rungs are epochs, the median, or nobody.

    Without `grace_epochs` the first rung is at a 27th of the epochs: however long trainings are,
    the first epochs of many rank them badly.
    """

    name: Literal["asha", "asha_pause", "hyperband", "median", "none"] = "asha"
    grace_epochs: int | None = Field(default=None, ge=1)  # no trial is stopped before
    # One in so many survives a rung; just above 1 there would be millions of rungs.
    reduction_factor: float = Field(default=3.0, ge=1.1)

    def grace(self, epochs: int) -> int:
        """Epochs of a training of at most `epochs` that nobody judges."""
        if self.grace_epochs is not None:
            return self.grace_epochs
        return max(1, round(epochs / self.reduction_factor**3))


_LEAST_SHARE = 1e-4  # Ray tells no smaller ones apart, and of several GPUs gives whole ones alone


class Resources(_Model):
    """What one trial occupies; fractions of a GPU share it."""

    cpu: float = Field(default=1.0, ge=_LEAST_SHARE)
    gpu: float | Literal["auto"] = "auto"  # auto: a share if there is one

    @field_validator("gpu", mode="before")
    @classmethod
    def _number_or_auto(cls, gpu: Any) -> Any:
        is_number = isinstance(gpu, (int, float)) and not isinstance(gpu, bool)
        is_share = is_number and _LEAST_SHARE <= gpu < 1
        is_whole = is_number and 0 <= gpu < math.inf and gpu == int(gpu)
        if gpu != "auto" and not (is_share or is_whole):
            raise ValueError(
                f"must be auto, 0, a share from {_LEAST_SHARE} to 1 or a whole number, got {gpu!r}"
            )
        return gpu


class ConfirmationConfig(_Model):
    """How the winner is chosen: the best trials are trained again with fresh seeds."""

    top: int = Field(default=3, ge=0)  # finalists; 0 takes the best trial as it is
    seeds: int = Field(default=2, ge=1)  # trainings of each
    ensemble: int = Field(default=1, ge=1)  # best finalists whose mean z-score judges a clip
    # Seeds of a finalist trained as one, see mimimi_core/fused.py; auto: where there is a GPU.
    fused: Literal["auto", True, False] = "auto"
    test: Literal["winner", "all"] = "winner"  # who meets the test clips, once the winner is chosen

    @model_validator(mode="after")
    def _check(self) -> "ConfirmationConfig":
        if self.test == "all" and not self.top:
            raise ValueError("test: all tests the finalists, so top must be >= 1, got 0")
        if self.ensemble > max(1, self.top):
            raise ValueError(f"ensemble must be <= top ({self.top}), got {self.ensemble}")
        return self


class PromotionConfig(_Model):
    """When a candidate replaces the champion, judged on the same test clips."""

    level: float = Field(default=0.05, gt=0, lt=0.5)  # chance to promote one that deserves it not
    margin: float = Field(default=0.01, gt=0, lt=1)  # test_auc that a cheaper one may lose
    cheaper: float = Field(default=2.0, ge=1)  # the champion's MACs per second of sound over its


CostName = Literal["parameters", "gmac_per_s", "latency_ms", "train_gib"]


class Constraints(_Model):
    """The most that a trial may cost; dearer ones are never run, and the sampler is told."""

    parameters: int | None = Field(default=None, gt=0)
    gmac_per_s: float | None = Field(default=None, gt=0)  # 1e9 multiply-accumulates per s of sound
    latency_ms: float | None = Field(default=None, gt=0)  # to score a 10 s clip, one CPU thread
    train_gib: float | None = Field(default=None, gt=0)  # estimated memory of a training

    @property
    def limits(self) -> dict[CostName, float]:
        """Those that are stated."""
        return {name: limit for name, limit in self if limit is not None}  # type: ignore[misc]


class StudySettings(_Model):
    """What is maximised and at what expense."""

    trials: int = Field(ge=1)  # per machine type
    epochs: int = Field(ge=1)  # most epochs of a trial
    hours: float | None = Field(default=None, gt=0)  # of GPUs, else of cores, for all trials
    seed: int = Field(default=0, ge=0)
    # auto is val_auc, or id_swap_auc for a machine type without labelled anomalies
    objective: Literal["auto", "id_swap_auc", "normal_log_likelihood"] = "auto"
    cost: CostName | None = None  # a second objective, minimised
    # A trial that reports no epoch for so long hangs; default: see search/failures.py.
    hang_minutes: float | None = Field(default=None, gt=0)
    parallel: int | None = Field(default=None, ge=1)  # most trials of a machine type at once
    deterministic: bool = False  # what a trial sees depends on its number, not on timing
    joint: bool = False  # beside one classifier per machine type, one for the ids of all of them

    @model_validator(mode="after")
    def _check(self) -> "StudySettings":
        if self.deterministic and self.parallel is None:
            raise ValueError(
                "deterministic needs a number of trials at once that does not follow the cluster: "
                "set study.parallel"
            )
        return self


class SpaceFile(_Model):
    """A whole space file."""

    study: StudySettings
    resources: Resources = Resources()
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    confirmation: ConfirmationConfig = ConfirmationConfig()
    promotion: PromotionConfig = PromotionConfig()
    constraints: Constraints = Constraints()
    parameters: dict[str, Parameter] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "SpaceFile":
        if self.scheduler.name == "asha_pause" and self.study.deterministic:
            raise ValueError(
                "study.deterministic needs trials that end where their own number says, and "
                "scheduler.name asha_pause lets them wait for each other: take asha"
            )
        grace = self.scheduler.grace_epochs or 1
        if self.scheduler.name != "none" and grace > self.study.epochs:
            raise ValueError(
                f"scheduler.grace_epochs must be <= study.epochs ({self.study.epochs}), "
                f"got {self.scheduler.grace_epochs}"
            )
        seen: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            _check_name(name)
            for needed, values in parameter.conditions.items():
                for value in values:
                    _check_condition(name, needed, value, seen)
            for value in boundary_values(parameter):
                _check_value(name, value)
            seen[name] = parameter
        if self.sampler.name == "grid":
            for name, parameter in self.parameters.items():
                if grid_values(parameter) is None:
                    raise ValueError(f"parameters.{name} needs a step, for the sampler is grid")
        if self.study.cost and self.sampler.name == "cmaes":
            raise ValueError(
                "study.cost is a second objective, which sampler cmaes cannot weigh: use another"
            )
        return self


def load_space(path: Path, overrides: dict[str, Any] | None = None) -> SpaceFile:
    """Read and check a space file.

    Args:
        path: The YAML file.
        overrides: Values that replace those of its `study` section: options of that name.

    Raises:
        SpaceError: In one line: the file and the key, or the option, the rule and the value.
    """
    try:
        raw = read_yaml(path)
    except OSError as error:
        raise SpaceError(f"--space {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SpaceError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise SpaceError(f"{path} must hold the keys study and parameters, got {raw!r}")
    if overrides and isinstance(raw.get("study"), dict):
        raw["study"] |= overrides
    try:
        return SpaceFile.model_validate(raw)
    except ValidationError as error:
        message = _first_error(error)
        for name in overrides or ():
            if message.startswith(f"study.{name}: "):
                raise SpaceError(message.replace(f"study.{name}", f"--{name}", 1)) from error
        raise SpaceError(f"{path}: {message}") from error


def boundary_values(parameter: Parameter) -> list[Scalar]:
    """The extreme or only values of a parameter: what holds for them holds between."""
    match parameter:
        case FloatParameter() | IntParameter():
            return [parameter.low, parameter.high]
        case CategoricalParameter():
            return list(parameter.choices)
        case BoolParameter():
            return [False, True]
        case FixedParameter():
            return [parameter.value]


def grid_values(parameter: Parameter) -> list[Scalar] | None:
    """All values of a parameter, rising; None if there is no end of them."""
    match parameter:
        case FloatParameter(low=low, high=high, step=step):
            if step is None:
                return [low] if low == high else None
            n_steps = round((high - low) / step)
            return [min(high, low + i * step) for i in range(n_steps + 1)]  # rounding overshoots
        case IntParameter(low=low, high=high, step=step):
            return list(range(low, high + 1, step or 1))
        case _:
            return boundary_values(parameter)


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low > high:
        raise ValueError(f"low must be <= high, got low {low} and high {high}")
    if log and low <= 0:
        raise ValueError(f"low must be > 0 when log is true, got {low}")
    if step is not None and step <= 0:
        raise ValueError(f"step must be > 0, got {step}")
    if log and step is not None:
        raise ValueError(f"step cannot be combined with log, got step {step}")
    if step is None:
        return
    try:
        n_steps = (high - low) / step
        is_whole = math.isclose(n_steps, round(n_steps))
    except OverflowError as error:
        raise ValueError(
            f"step must be larger, got {step}, of which more than can be counted lie between low "
            f"{low} and high {high}"
        ) from error
    if not is_whole:
        raise ValueError(
            f"high must be low ({low}) plus a multiple of step ({step}), got high {high}"
        )


def _check_name(name: str) -> None:
    if name in STUDY_OWNED:
        raise ValueError(f"parameters.{name} cannot be searched: it is {STUDY_OWNED[name]}")
    known = [key for key in known_params() if key not in STUDY_OWNED]
    if name not in known:
        raise ValueError(f"parameters.{name} is no parameter; known are {', '.join(known)}")


def _check_condition(name: str, needed: str, value: Scalar, seen: dict[str, Parameter]) -> None:
    if needed not in seen:
        raise ValueError(
            f"parameters.{name}.when must name a parameter listed before it, got {needed!r}"
        )
    kind = seen[needed]
    if isinstance(kind, (FloatParameter, IntParameter)):
        raise ValueError(
            f"parameters.{name}.when must name a bool, categorical or fixed parameter; "
            f"{needed} is {kind.kind}"
        )
    possible = boundary_values(kind)
    if not any(type(value) is type(p) and value == p for p in possible):
        raise ValueError(
            f"parameters.{name}.when: {needed} must be one of {possible}, got {value!r}"
        )


def _check_value(name: str, value: Scalar) -> None:
    try:
        TrialConfig.from_params({name: value})
    except ConflictError:
        return  # what relates two settings (hop <= n_fft) can only be judged for a whole trial
    except ConfigError as error:
        raise ValueError(f"parameters.{error}") from error


def _first_error(error: ValidationError) -> str:
    # A misspelt key is also a missing one; the misspelling says more.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    # Inside a parameter, pydantic puts the kind into the path: parameters, train.lr, float, low.
    parts = [p for i, p in enumerate(first["loc"]) if i != 2 or first["loc"][0] != "parameters"]
    key = ".".join(str(part) for part in parts)
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    match first["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is no known key"
        case "union_tag_not_found":
            return f"{key}.kind is missing; it must be one of {_KINDS}"
        case "union_tag_invalid":
            return f"{key}.kind must be one of {_KINDS}, got {first['input']['kind']!r}"
        case "value_error":
            return f"{key}: {message}" if key else message
        case _:
            return f"{key}: {message}, got {first['input']!r}"
