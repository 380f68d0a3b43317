# SPDX-License-Identifier: Apache-2.0
"""Times steps of the engine on this machine, with a random model in the place of one whose weights are not there.

Nothing is carried over from another processor: the engine itself runs, its scheduler and its sampler too, on as many
layers of the model as can be timed in seconds.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Final, cast

from open_autoglm.engine.memory import available_memory
from open_autoglm.models.config import ModelConfig
from open_autoglm.planning.memory import BLOCK_SIZE
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import DECODE_SEQUENCES, SpeedEstimate, estimate_speed, lengths_of, read_bytes
from open_autoglm.planning.stand_in import (
    BURST_SECONDS,
    FEWEST_STEPS,
    MEASURED_STEPS,
    REPETITIONS,
    StandIn,
    choose_stand_in,
)
from open_autoglm.targets import Target

if TYPE_CHECKING:
    from open_autoglm.engine.backends import Backend
    from open_autoglm.engine.backends.native_backend import RandomBackend

SECONDS: Final = 4.0
"""For which the steps of the chosen setup are timed again and again: on a machine that others share, how fast memory is
read changes by a third within a second, and the best of a few seconds is what can be found again."""

_LEAST_ROUNDS: Final = 2
_ROUND_SHARE: Final = 0.75
"""Of those seconds that a round may take by the machine's limits. More layers in fewer rounds come nearer to the whole
model than fewer layers in more rounds."""

_BOUND: Final = 1.25
"""What one layer costs is the difference of two times, whose errors are multiplied by the layers that were not timed.
Decoding takes about as long as reading the weights, so the whole model's time cannot be far from the larger stand-in's
times the bytes that either reads."""

_MEMORY_SHARE: Final = 0.5

Progress = Callable[[float, str], None]
"""progress(done, note): how many setups were timed so far, and which is next."""


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one step: of a prompt, of one token of one sequence, of one token of eight."""

    prefill: float
    decode_x1: float
    decode_x8: float

    def or_better(self, other: StepSeconds) -> StepSeconds:
        """The shorter times of both."""
        return StepSeconds(
            min(self.prefill, other.prefill),
            min(self.decode_x1, other.decode_x1),
            min(self.decode_x8, other.decode_x8),
        )

    def with_layers(self, count: int, smaller: StepSeconds, between: int) -> StepSeconds:
        """Of a model with `count` layers more than this one's. smaller: of a model with `between` layers less."""

        def extended(name: str) -> float:
            ours = getattr(self, name)
            return ours + count * max(0.0, ours - getattr(smaller, name)) / between

        return StepSeconds(extended("prefill"), extended("decode_x1"), extended("decode_x8"))

    def within(self, smaller: StepSeconds, growth_x1: float, growth_x8: float) -> StepSeconds:
        """Times of decoding no further than `_BOUND` from those of a smaller model, times by how much more is read."""

        def bounded(ours: float, expected: float) -> float:
            return min(max(ours, expected / _BOUND), expected * _BOUND)

        return StepSeconds(
            self.prefill,
            bounded(self.decode_x1, smaller.decode_x1 * growth_x1),
            bounded(self.decode_x8, smaller.decode_x8 * growth_x8),
        )


class MeasuredSpeeds:
    """Speeds on this machine, measured where the native engine computes; see `speed.LimitedSpeeds` for the rest.

    Each setup is timed once. progress: called before each.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._known: dict[tuple[object, ...], SpeedEstimate | None] = {}

    def of(
        self,
        config: ModelConfig,
        setup: Setup,
        target: Target,
        *,
        prompt_tokens: int | None = None,
        context: int | None = None,
    ) -> SpeedEstimate | None:
        """All speeds of a setup."""
        prompt, behind = lengths_of(setup, prompt_tokens, context)
        return self._measured(config, setup, target, prompt, behind, together=True) or estimate_speed(
            config, setup, target, prompt_tokens=prompt_tokens, context=context
        )

    def alone(self, config: ModelConfig, setup: Setup, target: Target) -> float | None:
        """Tokens per second of one answer."""
        prompt, behind = lengths_of(setup)
        found = self._measured(config, setup, target, prompt, behind, together=False)
        found = found or estimate_speed(config, setup, target)
        return None if found is None else found.decode_x1

    def _measured(
        self, config: ModelConfig, setup: Setup, target: Target, prompt: int, context: int, *, together: bool
    ) -> SpeedEstimate | None:
        key = (config, setup.weights, setup.kv_dtype, setup.threads, prompt, context)
        if (*key, True) in self._known:
            return self._known[*key, True]
        if (*key, together) not in self._known:
            if self._progress is not None:
                self._progress(len(self._known), f"{setup.weights} weights")
            self._known[*key, together] = measure_speed(
                config, setup, target, prompt=prompt, context=context, together=together
            )
        return self._known[*key, together]


def can_measure(setup: Setup, target: Target) -> bool:
    """Whether the engine that the setup names can be timed here and now."""
    if not target.is_this_machine or setup.backend != "native" or not target.bandwidth or not target.rates:
        return False
    from open_autoglm.engine.backends import availability

    return availability(setup.backend)[0]


def measure_speed(
    config: ModelConfig, setup: Setup, target: Target, *, prompt: int, context: int, together: bool = True
) -> SpeedEstimate | None:
    """Time a setup; None where that cannot be done here, in this memory or with so short a context.

    together: whether a prompt and eight sequences are timed as well, not one answer alone.
    """
    start = max(1, context - REPETITIONS * MEASURED_STEPS // 2)
    steps = min(MEASURED_STEPS, (config.max_context - start - 2 * DECODE_SEQUENCES[-1]) // REPETITIONS)
    if steps < 1 or prompt >= config.max_context or not can_measure(setup, target):
        return None
    stand_in = choose_stand_in(
        config,
        setup,
        target,
        prompt=prompt,
        context=context,
        seconds=_ROUND_SHARE * SECONDS,
        together=together,
    )
    if stand_in.num_bytes > _MEMORY_SHARE * available_memory():
        return None
    timed = _time_models(config, setup, stand_in, prompt, start, steps, together=together)
    found = timed[-1]
    if len(timed) > 1:
        smaller, larger = stand_in.layers
        found = found.with_layers(config.num_hidden_layers - larger, timed[0], larger - smaller)
        cut = replace(config, num_hidden_layers=larger)
        growth = {
            count: read_bytes(config, setup.weights, count) / read_bytes(cut, setup.weights, count)
            for count in DECODE_SEQUENCES
        }
        found = found.within(timed[1], growth[1], growth[DECODE_SEQUENCES[-1]])
    return SpeedEstimate(
        prefill=prompt / found.prefill,
        decode_x1=1 / found.decode_x1,
        decode_x8=DECODE_SEQUENCES[-1] / found.decode_x8,
        prompt_tokens=prompt,
        context=context,
        measured_layers=stand_in.layers[-1],
    )


def _time_models(  # noqa: PLR0917
    config: ModelConfig,
    setup: Setup,
    stand_in: StandIn,
    prompt: int,
    start: int,
    steps: int,
    *,
    together: bool,
) -> list[StepSeconds]:
    """The best times of each stand-in. They take turns, so that what other programs take is taken from both."""
    from open_autoglm.engine.backends.native_backend import load_random

    many = DECODE_SEQUENCES[-1] if together else 1
    with contextlib.ExitStack() as stack:
        backends = load_random(
            config,
            form=setup.weights,
            kv_dtype=setup.kv_dtype,
            threads=setup.threads,
            expert_bytes=stand_in.expert_bytes,
            layers=stand_in.layers,
        )
        runs = [stack.enter_context(_Run(backend, prompt, start, steps, many)) for backend in backends]
        begin = time.perf_counter()
        found, rounds = [run.round() for run in runs], 1
        while rounds < _LEAST_ROUNDS or (time.perf_counter() - begin) * (rounds + 1) / rounds < SECONDS:
            found = [best.or_better(run.round()) for best, run in zip(found, runs, strict=True)]
            rounds += 1
        return found


class _Run:
    """A random model in an engine, and the seconds of its steps. A context manager."""

    def __init__(self, backend: RandomBackend, prompt: int, start: int, steps: int, many: int) -> None:
        from open_autoglm.engine.engine import Engine

        self._prompt, self._start, self._steps, self._many = prompt, start, steps, many
        self._backend = backend
        each = -(-(start + REPETITIONS * steps + 2 * many) // BLOCK_SIZE)
        blocks = max(many * each, -(-prompt // BLOCK_SIZE) + 1)
        self._engine = Engine(
            cast("Backend", backend), kv_blocks=blocks, max_sequences=many, block_size=BLOCK_SIZE, stop_token_ids=()
        )
        self._requests = 0
        self._running: list[str] = []

    def round(self) -> StepSeconds:
        """Everything once."""
        alone = self._decode(1)
        if self._many == 1:
            return StepSeconds(alone, alone, alone)
        return StepSeconds(self._read(1, self._prompt), alone, self._decode(self._many))

    def _read(self, sequences: int, tokens: int) -> float:
        """Read a prompt of each of so many new sequences, in as many steps as that takes. Returns its seconds."""
        from open_autoglm.engine.request import Request, SamplingParams

        for name in self._running:
            self._engine.abort(name)
        self._running = []
        params = SamplingParams(ignore_eos=True)
        for _ in range(sequences):
            name = f"timed-{self._requests}"
            # Each begins with a number of its own, so that none is known from one before.
            first, self._requests = self._requests % self._backend.vocab_size, self._requests + 1
            self._engine.add_request(Request(name, (first, *[0] * (tokens - 1)), params))
            self._running.append(name)
        begin = time.perf_counter()
        while len(self._engine.step()) < sequences:
            pass
        return time.perf_counter() - begin

    def _decode(self, sequences: int) -> float:
        """Seconds of a step of one token each: the best of the bursts' medians."""
        self._backend.skims = True
        self._read(sequences, self._start)
        self._backend.skims = False
        medians: list[float] = []
        for _ in range(REPETITIONS):
            taken: list[float] = []
            while len(taken) < self._steps and (len(taken) < FEWEST_STEPS or sum(taken) < BURST_SECONDS):
                begin = time.perf_counter()
                self._engine.step()
                taken.append(time.perf_counter() - begin)
            medians.append(statistics.median(taken))
        return min(medians)

    def __enter__(self) -> _Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.close()
