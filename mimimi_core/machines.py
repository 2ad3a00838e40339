"""Owns the sounds of the generated machines: four types, four ids each, with faults. Writes none.

A clip is the machine's sound over factory noise (pink noise, mains hum, distant clanks), the
machine 6 dB over the noise on average, with a standard deviation of 0.5 dB from clip to clip.
Normal clips also differ in speed, load, gain and the room's response where the microphone stands,
so that no single level gives a fault away. The faults are graded: some change the long-term
spectrum, some only when things happen, one of them (`fan`, drive) only the continuity of phase.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[Any]  # (N,) float32 sound, or a float response over `_HZ`

SAMPLE_RATE = 16000  # Hz
N_SAMPLES = 4 * SAMPLE_RATE
MACHINE_IDS = ("id_00", "id_02", "id_04", "id_06")
SNR_DB = 6.0
JITTER_RAD = 0.25  # of the drive fault: standard deviation of a line's phase step in 32 ms

_TIME = np.arange(N_SAMPLES) / SAMPLE_RATE  # s
_HZ = np.fft.rfftfreq(N_SAMPLES, 1 / SAMPLE_RATE)


@dataclass(frozen=True)
class Machine:
    """What tells one id from another; the meaning of `rate_hz` and `count` is the type's."""

    rate_hz: float
    count: int
    resonances_hz: tuple[float, ...]
    noise_slope: float  # amplitude falls with frequency to this power
    detune_hz: float = 0.0


def fan(
    machine: Machine,
    rng: np.random.Generator,
    fault: str | None = None,
    jitter_rad: float = JITTER_RAD,
) -> Signal:
    """Shaft and blade harmonics with drift, turbulence, and the whine of an electronic drive.

    Faults:
        imbalance: The shaft's harmonics rise and the turbulence beats once a turn.
        blade: A bent blade modulates blade harmonics and turbulence once a turn.
        drive: The phase of each line of the whine walks at random, by `jitter_rad` (standard
            deviation) per 32 ms. With 0.25 rad a line gets 0.3 Hz wide, far less than a bin:
            magnitudes hardly change, only the continuity of phase breaks.
    """
    turns = _turns(rng, machine.rate_hz * _spread(rng, 0.02), 0.004)
    once = _sine(turns)
    shaft = _lines(rng, turns, (0.5, 0.25, 0.15, 0.1))
    blades = _lines(rng, machine.count * turns, (1.0, 0.6, 0.4, 0.25, 0.15, 0.1))
    air = _noise(rng, _slope(machine.noise_slope) * _colour(machine, 4.0))
    air = air * (1 + 0.3 * _sine(machine.count * turns))
    if fault == "imbalance":
        shaft, air = 3.0 * shaft, air * (1 + 0.4 * once)
    if fault == "blade":
        blades, air = blades * (1 + 0.9 * once), air * (1 + 0.75 * once)
    drive = whine(machine, rng, jitter_rad if fault == "drive" else None)
    return shaft + blades + _load(rng) * air + 0.45 * drive


def whine(machine: Machine, rng: np.random.Generator, jitter_rad: float | None = None) -> Signal:
    """What a fan's electronic drive sounds like, locked to a crystal: eight steady lines.

    Ids differ by a few Hz, inside one bin of a 1024-point transform. With `jitter_rad` the phase of
    each line walks at random, by so many rad (standard deviation) per 32 ms.
    """
    sound = np.zeros(N_SAMPLES, np.float32)
    for line in range(8):
        phase = (15.625 * (50 + 27 * line) + machine.detune_hz) * _TIME + rng.random()
        if jitter_rad is not None:
            phase += np.cumsum(rng.normal(0, jitter_rad / np.sqrt(512), N_SAMPLES)) / (2 * np.pi)
        sound += _sine(phase)
    return sound


def pump(machine: Machine, rng: np.random.Generator, fault: str | None = None) -> Signal:
    """Shaft and vane harmonics, the hum of a motor and flow noise through resonant pipes.

    Faults:
        cavitation: Bursts of bright noise, each some 30 ms, eight a second.
        bearing: A damaged race is struck 3.6 times a turn and rings at 3.2 kHz.
        surge: The flow swells and ebbs 2.5 times a second at the same mean level.
    """
    turns = _turns(rng, machine.rate_hz * _spread(rng, 0.015), 0.003)
    motor = _lines(rng, turns, (0.6, 0.3, 0.2)) + _lines(rng, 100 * _TIME, (0.5, 0.2, 0.1))
    vanes = _lines(rng, machine.count * turns, (0.9, 0.5, 0.4, 0.2, 0.1))
    flow = _noise(rng, _slope(machine.noise_slope) * _colour(machine, 6.0))
    sound = motor + vanes
    if fault == "cavitation":
        bursts = _ring(_strikes(rng, 8.0), _decay(0.012))
        sound = sound + 1.2 * bursts * _noise(rng, _band(3000, 6500))
    if fault == "bearing":
        struck = np.diff(np.floor(3.6 * turns), prepend=np.floor(3.6 * turns[0]))
        sound = sound + 1.2 * _ring(struck, _decaying_tone(3200, 0.003))
    if fault == "surge":
        flow = flow * (1 + 0.65 * _sine(2.5 * _TIME + rng.random()))
    return sound + _load(rng) * flow


def slider(machine: Machine, rng: np.random.Generator, fault: str | None = None) -> Signal:
    """A carriage going to and fro: rolling noise and whine that follow its speed, a thud each end.

    Faults:
        rub: Once a stroke, at the same place, something grazes for a tenth of a second.
        rattle: A loose part rattles after each thud.
        stick: The carriage sticks and slips 17 times a second; the rolling noise stutters.
    """
    strokes = 2 * _turns(rng, machine.rate_hz * _spread(rng, 0.03), 0.005)
    place = strokes % 1.0
    speed = np.sin(np.pi * place) ** 2
    ends = np.diff(np.floor(strokes), prepend=np.floor(strokes[0]))
    rolling = speed * _noise(rng, _slope(machine.noise_slope) * _colour(machine, 5.0))
    whine_hz = 12.0 * machine.count * speed
    whine = speed * _lines(rng, np.cumsum(whine_hz) / SAMPLE_RATE, (0.4, 0.3, 0.2, 0.1))
    thuds = 4.0 * _ring(ends, _decaying_tone(machine.resonances_hz[0] / 3, 0.02))
    sound = whine + thuds
    if fault == "rub":
        grazing = np.exp(-(((place - 0.6) / 0.05) ** 2))
        sound = sound + 1.2 * grazing * _noise(rng, _band(2500, 6000))
    if fault == "rattle":
        loose = np.roll(ends, 900) + 0.7 * np.roll(ends, 1700) + 0.5 * np.roll(ends, 2300)
        sound = sound + 4.5 * _ring(loose, _decaying_tone(2600, 0.004))
    if fault == "stick":
        rolling = rolling * (1 + _sine(17 * _TIME + rng.random()))
    return sound + _load(rng) * rolling


def valve(machine: Machine, rng: np.random.Generator, fault: str | None = None) -> Signal:
    """A solenoid valve: a click opens it, air puffs out, a click closes it.

    Faults:
        leak: Air hisses while the valve is shut.
        late: Each closing click comes 20 to 80 ms late; the long-term spectrum hardly changes.
        weak: The spring is tired: closing clicks at a quarter of their force, with an echo.
    """
    cycles = _turns(rng, machine.rate_hz * _spread(rng, 0.03), 0.01)
    opening = np.flatnonzero(np.diff(np.floor(cycles), prepend=np.floor(cycles[0])))
    held = 0.22 / machine.rate_hz * SAMPLE_RATE
    closing = opening + held * (1 + 0.02 * rng.standard_normal(len(opening)))
    if fault == "late":
        closing = closing + rng.uniform(0.02, 0.08, len(opening)) * SAMPLE_RATE
    closing = np.mod(closing.astype(np.int64), N_SAMPLES)
    strikes, puffs = np.zeros(N_SAMPLES), np.zeros(N_SAMPLES)
    strikes[opening] = 1.0
    strikes[closing] = 0.2 if fault == "weak" else 0.8
    if fault == "weak":
        strikes[(closing + 160) % N_SAMPLES] = 0.2
    puffs[opening] = 1.0
    hiss = _noise(rng, _band(900, 7000) * _colour(machine, 3.0))
    body = np.fft.irfft(_resonance(machine, 25.0), N_SAMPLES)[: N_SAMPLES // 20]
    clicks = _ring(strikes, body / np.abs(body).max())
    air = _ring(puffs, _decay(0.01 * machine.count))
    if fault == "leak":
        air = air + 0.08
    return 3.0 * clicks + 0.5 * _load(rng) * air * hiss


_SOUNDS: dict[str, Callable[[Machine, np.random.Generator, str | None], Signal]] = {
    "fan": fan,
    "pump": pump,
    "slider": slider,
    "valve": valve,
}
FAULTS = {
    "fan": ("imbalance", "blade", "drive"),
    "pump": ("cavitation", "bearing", "surge"),
    "slider": ("rub", "rattle", "stick"),
    "valve": ("leak", "late", "weak"),
}
MACHINES = {
    "fan": (  # turns/s, blades
        Machine(24.0, 7, (430, 1970), 0.58, -4.5),
        Machine(25.0, 7, (440, 2010), 0.59, -1.5),
        Machine(25.8, 7, (450, 1990), 0.58, 1.5),
        Machine(26.4, 7, (435, 2030), 0.60, 4.5),
    ),
    "pump": (  # turns/s, vanes
        Machine(24.2, 5, (600, 1500, 3050), 0.46),
        Machine(24.9, 6, (608, 1520, 3010), 0.48),
        Machine(23.5, 5, (592, 1535, 3090), 0.47),
        Machine(25.6, 6, (604, 1490, 3030), 0.45),
    ),
    "slider": (  # returns/s, teeth of the motor
        Machine(0.62, 60, (715, 2400), 0.35),
        Machine(0.70, 66, (755, 2270), 0.38),
        Machine(0.56, 72, (725, 2500), 0.39),
        Machine(0.66, 63, (780, 2430), 0.34),
    ),
    "valve": (  # cycles/s, length of the puff in 10 ms
        Machine(1.6, 6, (1300, 3400), 0.0),
        Machine(1.9, 5, (1450, 3100), 0.0),
        Machine(2.2, 7, (1200, 3700), 0.0),
        Machine(1.7, 4, (1550, 3500), 0.0),
    ),
}


def fault_of(machine_type: str, number: int) -> str:
    """The fault of the anomaly with that number in its file name."""
    return FAULTS[machine_type][number % len(FAULTS[machine_type])]


def machine_clip(
    machine_type: str, machine_id: str, rng: np.random.Generator, fault: str | None = None
) -> Signal:
    """One recording, (64000,) int16: the machine in its room, with a fault or without."""
    machine = MACHINES[machine_type][MACHINE_IDS.index(machine_id)]
    sound = _SOUNDS[machine_type](machine, rng, fault)
    return record(rng, sound)


def record(rng: np.random.Generator, sound: Signal) -> Signal:
    """What a microphone in a factory hears of a machine, (N,) int16."""
    place = 10 ** (_smooth_spectrum(rng, 0.4) / 20)  # the room's response where it stands
    sound = np.fft.irfft(np.fft.rfft(sound) * place, N_SAMPLES)
    room = _noise(rng, _slope(0.5)) + 0.3 * _lines(rng, 50 * _TIME, (1.0, 0.5, 0.3))
    room = room + 4.0 * _ring(_strikes(rng, 0.7), _decaying_tone(rng.uniform(500, 2500), 0.05))
    snr_db = rng.normal(SNR_DB, 0.5)
    heard = sound / _rms(sound) + 10 ** (-snr_db / 20) * room / _rms(room)
    gain = 0.03 * 10 ** (rng.normal(0, 0.4) / 20)
    return np.clip(np.rint(32768 * gain * heard), -32768, 32767).astype(np.int16)


def _rms(x: Signal) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _spread(rng: np.random.Generator, relative: float) -> float:
    """A factor near 1: this clip's speed against the machine's usual one."""
    return float(rng.uniform(1 - relative, 1 + relative))


def _load(rng: np.random.Generator) -> float:
    """Level of the noise that a machine makes itself, 0.5 dB from clip to clip."""
    return float(10 ** (rng.normal(0, 0.5) / 20))


def _turns(rng: np.random.Generator, rate_hz: float, wander: float) -> Signal:
    """Turns since a random start, (N,), of a shaft whose speed wanders slowly."""
    knots = np.linspace(0, _TIME[-1], 9)
    rates = rate_hz * (1 + np.interp(_TIME, knots, rng.normal(0, wander, len(knots))))
    return rng.random() + np.cumsum(rates) / SAMPLE_RATE


def _sine(turns: Signal) -> Signal:
    """Sine of a phase in turns; the phase is exact, the sine is float32 and so ten times faster."""
    sine: Signal = np.sin(2 * np.pi * (turns - np.floor(turns)).astype(np.float32))
    return sine


def _lines(rng: np.random.Generator, turns: Signal, levels: Sequence[float]) -> Signal:
    """Harmonics of something that turns, with random phases."""
    sound = np.zeros(N_SAMPLES, np.float32)
    for order, level in enumerate(levels, start=1):
        sound += level * _sine(order * turns + rng.random())
    return sound


def _noise(rng: np.random.Generator, response: Signal) -> Signal:
    """Gaussian noise of RMS 1 with an amplitude response over `_HZ`."""
    white = rng.standard_normal(2 * len(_HZ), np.float32).view(np.complex64)
    noise = np.fft.irfft(white * response, N_SAMPLES)
    return noise / _rms(noise)


@cache
def _slope(exponent: float) -> Signal:
    response: Signal = np.maximum(_HZ, 40.0) ** -exponent
    return response.astype(np.float32)


@cache
def _band(low_hz: float, high_hz: float) -> Signal:
    response: Signal = 1 / (1 + (low_hz / np.maximum(_HZ, 1)) ** 8 + (_HZ / high_hz) ** 8)
    return response.astype(np.float32)


@cache
def _resonance(machine: Machine, q: float) -> Signal:
    """Complex response of the machine's body over `_HZ`: a pole pair per resonance."""
    ratios = (_HZ / peak for peak in machine.resonances_hz)
    response = sum((1j * ratio / q) / (1 - ratio**2 + 1j * ratio / q) for ratio in ratios)
    return np.asarray(response, np.complex64)


def _colour(machine: Machine, q: float) -> Signal:
    """What the body does to noise: some of it escapes without resonating."""
    return 0.15 + np.abs(_resonance(machine, q))


def _smooth_spectrum(rng: np.random.Generator, spread_db: float) -> Signal:
    knots = np.linspace(0, _HZ[-1], 12)
    level_db: Signal = np.interp(_HZ, knots, rng.normal(0, spread_db, len(knots)))
    return level_db.astype(np.float32)


def _strikes(rng: np.random.Generator, per_second: float) -> Signal:
    """Random blows, (N,): their force where they fall, else 0."""
    strikes = np.zeros(N_SAMPLES, np.float32)
    n_strikes = rng.poisson(per_second * _TIME[-1])
    strikes[rng.integers(0, N_SAMPLES, n_strikes)] = rng.uniform(0.5, 1.0, n_strikes)
    return strikes


def _decay(seconds: float) -> Signal:
    """Exponential decay, as long as it can be heard."""
    decay: Signal = np.exp(-_TIME[: int(8 * seconds * SAMPLE_RATE)] / seconds)
    return decay.astype(np.float32)


def _decaying_tone(hz: float, seconds: float) -> Signal:
    decay = _decay(seconds)
    return decay * _sine(hz * _TIME[: len(decay)])


def _ring(strikes: Signal, response: Signal) -> Signal:
    """What strikes (N,) on a body with that impulse response sound like, (N,)."""
    sound = np.zeros(N_SAMPLES + len(response), np.float32)
    for start in np.flatnonzero(strikes):
        sound[start : start + len(response)] += strikes[start] * response
    return sound[:N_SAMPLES]
