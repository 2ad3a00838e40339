"""Owns every setting of one training as frozen dataclasses that refuse bad values on construction.

Field names are the parameter names of a search space: `network.channels` in a YAML file is
`NetworkConfig.channels` here. Does not read files; `search/config.py` does.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

Size = tuple[int, int]
FrontendKind = Literal["complex", "magnitude", "logmel"]
NetworkKind = Literal[
    "deep_encoder", "mobilenetv2", "autoencoder", "gmade", "mahalanobis", "nearest_neighbour"
]
Norm = Literal["split", "whitening"]
Activation = Literal["prelu", "modrelu", "crelu", "zrelu"]
Head = Literal["linear", "arcface", "noisy_arcmix"]
Padding = Literal["half", "valid"]
LrSchedule = Literal["constant", "cosine"]
Normalization = Literal["none", "rms"]
Precision = Literal["auto", "fp32", "bf16"]


# What each kind of network can read.
INPUTS: dict[NetworkKind, tuple[FrontendKind, ...]] = {
    "deep_encoder": ("complex", "magnitude", "logmel"),
    "mobilenetv2": ("magnitude", "logmel"),
    "autoencoder": ("logmel",),
    "gmade": ("logmel",),
    "mahalanobis": ("magnitude", "logmel"),
    "nearest_neighbour": ("magnitude", "logmel"),
}
CLASSIFIERS = ("deep_encoder", "mobilenetv2")
ID_FREE = ("autoencoder", "gmade")  # one density for all ids, the same score under each
CONTEXT = 5  # frames that those look at together
OF_MEAN_SPECTRA = ("mahalanobis", "nearest_neighbour")


class ConfigError(ValueError):
    """A setting breaks its rule; the message names the key, the rule and the value."""


class ConflictError(ConfigError):
    """Settings that are each allowed do not fit together."""


def _require(
    holds: bool, key: str, rule: str, value: object, error: type[ConfigError] = ConfigError
) -> None:
    if not holds:
        raise error(f"{key} {rule}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class FrontendConfig:
    """Waveform to features (paper section IV-B: 64 ms window, 32 ms hop, 64 frames)."""

    kind: FrontendKind = "complex"  # the STFT, its magnitude, or log power in mel bands
    n_mels: int = 128  # bands of "logmel"
    sample_rate: int = 16000  # Hz; clips at another rate are resampled when packed
    n_fft: int = 1024  # samples; also the length of the Hann window
    hop: int = 512  # samples
    n_frames: int = 64  # STFT columns of one crop
    normalization: Normalization = "none"  # "rms" scales each crop to a root mean square of 1

    def __post_init__(self) -> None:
        _require(self.sample_rate > 0, "frontend.sample_rate", "must be > 0 Hz", self.sample_rate)
        _require(self.n_fft >= 16, "frontend.n_fft", "must be >= 16 samples", self.n_fft)
        _require(self.hop > 0, "frontend.hop", "must be > 0 samples", self.hop)
        rule = f"must be <= frontend.n_fft ({self.n_fft})"
        _require(self.hop <= self.n_fft, "frontend.hop", rule, self.hop, ConflictError)
        _require(self.n_frames >= 1, "frontend.n_frames", "must be >= 1", self.n_frames)
        _require(self.n_mels >= 1, "frontend.n_mels", "must be >= 1", self.n_mels)
        if self.kind == "logmel":  # narrower bands may fall between two bins and hold nothing
            rule = f"must be <= a quarter of the {self.n_bins} bins of frontend.n_fft {self.n_fft}"
            _require(
                4 * self.n_mels <= self.n_bins, "frontend.n_mels", rule, self.n_mels, ConflictError
            )

    @property
    def n_bins(self) -> int:
        """Rows of the spectrum, DC and Nyquist included."""
        return self.n_fft // 2 + 1

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(channels, rows, frames) of what a network gets of one crop."""
        rows = self.n_mels if self.kind == "logmel" else self.n_bins
        return (2 if self.kind == "complex" else 1, rows, self.n_frames)

    @property
    def crop_samples(self) -> int:
        """Samples that `n_frames` uncentred frames span: 33,280 (2.08 s) for the paper."""
        return (self.n_frames - 1) * self.hop + self.n_fft


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network; the defaults are Table I of Kim, Ho and Kang (EUSIPCO 2021).

    The deep encoder computes as its input is: with complex numbers on the STFT, in two branches and
    three heads; with real ones on magnitudes and mel bands, in one. Attention, norm and activation
    are the complex one's alone. "mobilenetv2" is fixed as published and has no settings but the
    head's. All others classify nothing and have no settings.

    The encoder has `depth` layers. The first two use the early kernel, the others the
    late one; all stride (2, 2) but the last, which strides (2, 1) with a kernel
    `kernel_width_last` wide. Channels are `channels` in the first and last layer, twice that
    between.
    """

    kind: NetworkKind = "deep_encoder"
    channels: int = 45
    depth: int = 5
    kernel_height_early: int = 7
    kernel_width_early: int = 5
    kernel_height_late: int = 5
    kernel_width_late: int = 3
    kernel_width_last: int = 2
    attention: bool = True
    attention_expansion: int = 4  # width of the hidden layer over its input (paper III-B)
    padding: Padding = "half"  # "half" is (k-1)//2 and 2 rows in the branches; the paper is silent
    bias: bool = False  # in the encoder's convolutions; batch norm follows, so it changes nothing

    norm: Norm = (
        "split"  # of each part by itself; "whitening": both together (Trabelsi et al. 2018)
    )
    activation: Activation = "prelu"  # of each part by itself; the others are in complex_nn.py
    # "arcface": cosines with an angular margin (Deng et al. 2019), of a mixture ArcMix;
    # "noisy_arcmix": the same, of a mixture that of Choi and Choi (2024). See CosineHead.
    head: Head = "linear"
    arcface_scale: float = 30.0  # of the cosines, in either; Noisy-ArcMix takes 30
    arcface_margin: float = 0.5  # rad, added to an angle in training; Noisy-ArcMix takes 0.7

    def __post_init__(self) -> None:
        rule = f"must be 'linear' for network.kind {self.kind!r}, which classifies no ids"
        allowed = self.head == "linear" or self.kind in CLASSIFIERS
        _require(allowed, "network.head", rule, self.head, ConflictError)
        scale, margin = self.arcface_scale, self.arcface_margin
        _require(scale > 0, "network.arcface_scale", "must be > 0", scale)
        _require(0 <= margin < math.pi / 2, "network.arcface_margin", "must be in 0..pi/2", margin)
        _require(self.channels >= 1, "network.channels", "must be >= 1", self.channels)
        _require(self.depth >= 3, "network.depth", "must be >= 3", self.depth)
        for name in (
            "kernel_height_early",
            "kernel_width_early",
            "kernel_height_late",
            "kernel_width_late",
            "kernel_width_last",
        ):
            _require(
                getattr(self, name) >= 1, f"network.{name}", "must be >= 1", getattr(self, name)
            )
        height, width = self.kernel_height_early, self.kernel_width_early
        rule = (
            "must be > 1 where network.kernel_width_early is 1: on a CPU the gradient of a strided "
            "1 x 1 convolution of one or two channels corrupts memory (oneDNN issue 6035)"
        )
        _require(max(height, width) > 1, "network.kernel_height_early", rule, height, ConflictError)
        _require(
            self.attention_expansion >= 1,
            "network.attention_expansion",
            "must be >= 1",
            self.attention_expansion,
        )

    @property
    def layers(self) -> tuple[tuple[int, Size, Size], ...]:
        """(channels, kernel (F, T), stride (F, T)) of each encoder layer, Table I for defaults."""
        early = (self.kernel_height_early, self.kernel_width_early)
        late = (self.kernel_height_late, self.kernel_width_late)
        last = (self.kernel_height_late, self.kernel_width_last)
        middle = [
            (2 * self.channels, early if i == 1 else late, (2, 2)) for i in range(1, self.depth - 1)
        ]
        return ((self.channels, early, (2, 2)), *middle, (self.channels, last, (2, 1)))

    def check_input(self, frontend: FrontendConfig) -> None:
        """Refuse, with a `ConflictError`, features that this network cannot read."""
        inputs = INPUTS[self.kind]
        rule = f"must be {' or '.join(map(repr, inputs))} for network.kind {self.kind!r}"
        _require(frontend.kind in inputs, "frontend.kind", rule, frontend.kind, ConflictError)
        for name in ("norm", "activation"):
            value, default = getattr(self, name), getattr(NetworkConfig, name)
            rule = f"must be {default!r} unless a deep_encoder reads frontend.kind 'complex'"
            allowed = value == default or frontend.kind == "complex"  # which others refuse
            _require(allowed, f"network.{name}", rule, value, ConflictError)
        shape = frontend.feature_shape
        if not self.fits(*shape):
            raise ConflictError(
                f"a crop of {shape[1]} x {shape[2]} (bins x frames) is too small for "
                + (
                    f"network.depth {self.depth} with padding {self.padding!r}: raise "
                    "frontend.n_frames or lower the depth"
                    if self.kind == "deep_encoder"
                    else f"network.kind {self.kind!r}: raise frontend.n_frames"
                )
            )

    def fits(self, n_channels: int, n_bins: int, n_frames: int) -> bool:
        """Whether features of this shape are left with a map in every layer."""
        if self.kind == "mobilenetv2":  # halves five times, rounding up
            return min(n_bins, n_frames) >= 1 and max(n_bins, n_frames) > 2**5
        if self.kind in ID_FREE:
            return n_frames > CONTEXT  # over a single vector there is no variance
        if self.kind in OF_MEAN_SPECTRA:
            return True
        halved = self.padding == "half"
        for _, kernel, stride in self.layers:
            pad_f, pad_t = ((k - 1) // 2 if halved else 0 for k in kernel)
            n_bins = (n_bins + 2 * pad_f - kernel[0]) // stride[0] + 1
            n_frames = (n_frames + 2 * pad_t - kernel[1]) // stride[1] + 1
        if min(n_bins, n_frames) < 1 or n_bins * n_frames == 1:
            return False  # over a single value, a batch of one crop has no variance to divide by
        n_bins = (n_bins + 4 * halved - 5) // 2 + 1  # the branches
        if n_channels == 2 and self.attention:
            n_bins = (n_bins + 2 * halved - 3) // 2 + 1
        return n_bins >= 1


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of training crops: which kinds are on, and a crop's chance to get each."""

    mixing: bool = False  # linear combination of ids with a KL target (Giri et al. 2020)
    mixing_p: float = 0.5
    # Concentration of the Dirichlet weights; small = nearly one id. Below 0.1 all weights of a crop
    # may be drawn too near 0 to be told apart, which mixes evenly.
    mixing_alpha: float = 1.0
    mask: bool = False  # spectral masking: bands of bins set to 0 (Park et al. 2019)
    mask_p: float = 0.5
    mask_bands: int = 2
    mask_width: int = 8  # bins, the widest band
    noise: bool = False  # white Gaussian noise on the waveform
    noise_p: float = 0.5
    noise_level: float = 0.05  # largest RMS of the noise over the RMS of the crop
    shift: bool = False  # frequency shift by whole bins, zero-filled
    shift_p: float = 0.5
    shift_bins: int = 2  # the farthest shift

    def __post_init__(self) -> None:
        for name in ("mixing_p", "mask_p", "noise_p", "shift_p"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, f"augment.{name}", "must be in 0..1", value)
        alpha = self.mixing_alpha
        _require(alpha >= 0.1, "augment.mixing_alpha", "must be >= 0.1", alpha)
        _require(self.noise_level > 0, "augment.noise_level", "must be > 0", self.noise_level)
        for name in ("mask_bands", "mask_width", "shift_bins"):
            value = getattr(self, name)
            _require(value >= 1, f"augment.{name}", "must be >= 1", value)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation; Adam at 1e-4 is the paper's (IV-B), batch size and epochs it leaves open."""

    epochs: int = 30
    batch_size: int = 32
    lr: float = 1e-4
    lr_schedule: LrSchedule = "constant"  # "cosine" falls to 0 over `epochs`
    weight_decay: float = 0.0
    loss_weight_magnitude: float = 1.0  # of the magnitude head's cross-entropy; total has 1
    loss_weight_complex: float = 1.0
    patience: int = 0  # epochs without a better objective that end the training; 0 is never
    precision: Precision = "auto"  # "auto" is bf16 where the hardware multiplies it, else fp32
    compile: bool = False  # steps by torch.compile, on a GPU replayed as CUDA graphs
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "train.epochs", "must be >= 1", self.epochs)
        _require(self.batch_size >= 2, "train.batch_size", "must be >= 2", self.batch_size)
        _require(self.lr > 0, "train.lr", "must be > 0", self.lr)
        for name in ("weight_decay", "loss_weight_magnitude", "loss_weight_complex"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name}", "must be >= 0", value)
        _require(self.patience >= 0, "train.patience", "must be >= 0", self.patience)
        allowed = 0 <= self.seed < 2**48  # torch takes 64 bits, of which the epoch has 16
        _require(allowed, "train.seed", "must be in 0..2**48-1", self.seed)


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """All settings of one training."""

    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        self.network.check_input(self.frontend)
        kind, head, mixing = self.network.kind, self.network.head, self.augment.mixing
        rule = f"must be false for network.kind {kind!r}, which classifies no ids"
        _require(kind in CLASSIFIERS or not mixing, "augment.mixing", rule, mixing, ConflictError)
        rule = f"must be true for network.head {head!r}, else it is 'arcface'"
        allowed = mixing or head != "noisy_arcmix"
        _require(allowed, "augment.mixing", rule, mixing, ConflictError)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "TrialConfig":
        """Build from flat dotted names (`{"network.channels": 45}`); the rest keeps its default.

        Raises:
            ConfigError: A name is unknown, or a value has the wrong type or breaks its rule.
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in params.items():
            fields = known_params()
            if name not in fields:
                raise ConfigError(f"unknown parameter {name!r}; known: {', '.join(fields)}")
            section, key = name.split(".")
            sections.setdefault(section, {})[key] = _checked(name, value, fields[name])
        types = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        return cls(**{name: types[name](**values) for name, values in sections.items()})  # type: ignore[operator]

    def to_params(self) -> dict[str, Any]:
        """The inverse of `from_params`, with every field."""
        return {
            f"{section}.{key}": value
            for section, values in dataclasses.asdict(self).items()
            for key, value in values.items()
        }


def known_params() -> dict[str, Any]:
    """Dotted name -> annotated type of every setting."""
    sections = (
        ("frontend", FrontendConfig),
        ("network", NetworkConfig),
        ("augment", AugmentConfig),
        ("train", TrainConfig),
    )
    return {f"{name}.{f.name}": f.type for name, cls in sections for f in dataclasses.fields(cls)}


def _checked(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        _require(value in get_args(kind), name, f"must be one of {list(get_args(kind))}", value)
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(is_right, name, f"must be of type {kind.__name__}", value)
    return value


def differences(path: str, stored: Any, wanted: Any) -> Iterator[str]:
    """What differs between two JSON values, as `study.epochs is 30 there, 20 here`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            deeper = f"{path}.{key}" if path else key
            yield from differences(deeper, stored.get(key), wanted.get(key))
    elif stored != wanted:
        yield f"{path} is {_short(stored)} there, {_short(wanted)} here"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
