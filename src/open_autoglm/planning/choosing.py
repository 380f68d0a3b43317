# SPDX-License-Identifier: Apache-2.0
"""How to run a model on a target: a pure function of both, with a reason for each part and for what was refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from open_autoglm.engine.memory import MAX_SEQUENCES
from open_autoglm.errors import ConfigurationError
from open_autoglm.planning.backend import BackendAdvice, advise_backend
from open_autoglm.planning.efficiency import MEASURED_FEATURE, efficiency_of
from open_autoglm.planning.fitting import fit_batch, longest_context, most_sequences, takes, usable_memory
from open_autoglm.planning.formats import FormatOrder, cache_types, order_formats
from open_autoglm.planning.memory import BLOCK_SIZE, estimate_memory, kv_blocks
from open_autoglm.planning.model_shape import PlannedModel
from open_autoglm.planning.plan import Choice, Plan
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import LimitedSpeeds, SpeedEstimate, Speeds
from open_autoglm.targets import FORMATS, Target

DEFAULT_CONTEXT: Final = 8192
"""Tokens of context that a plan wants where it is not told, or what the model has if less."""

LEAST_CONTEXT: Final = 2048
"""To which a context that nobody asked for is shortened before a smaller format is taken."""

_MEGABYTE: Final = 1e6


def plan_model(
    model: PlannedModel,
    target: Target,
    *,
    max_memory: int | None = None,
    context: int | None = None,
    concurrency: int | None = None,
    others: Iterable[Target] = (),
    speeds: Speeds | None = None,
) -> Plan:
    """Choose formats, batch, context, threads and backend for a model on a target.

    max_memory: bytes that may be taken; what the target has, less the system's part, if not given. context: tokens that
    each answer must have with its prompt. concurrency: answers at a time. others: targets to name when nothing fits.
    speeds: computed from the target's limits if not given.
    Raises ConfigurationError for numbers below 1 and a context that the model does not have.
    """
    for name, value in (("max-memory", max_memory), ("context", context), ("concurrency", concurrency)):
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name} must be at least 1, not {value}")
    if context is not None and context > model.config.max_context:
        raise ConfigurationError(
            f"--context {context} is more than the {model.config.max_context} tokens of {model.name}"
        )
    if concurrency is not None and concurrency > MAX_SEQUENCES:
        raise ConfigurationError(f"--concurrency must be at most {MAX_SEQUENCES}, not {concurrency}")
    usable = usable_memory(target) if max_memory is None else max_memory
    advice, others, speeds = advise_backend(target), tuple(others), speeds or LimitedSpeeds()
    while True:
        plan = _Planner(model, target, advice, usable, context, concurrency, others, speeds).plan()
        if plan.fits or advice.instead is None:
            return plan
        advice = advice.instead


class _Planner:
    """One plan in work."""

    def __init__(  # noqa: PLR0917
        self,
        model: PlannedModel,
        target: Target,
        advice: BackendAdvice,
        usable: int,
        context: int | None,
        concurrency: int | None,
        others: tuple[Target, ...],
        speeds: Speeds,
    ) -> None:
        self._model, self._config, self._target, self._usable = model, model.config, target, usable
        self._asked_context, self._concurrency, self._others = context, concurrency, others
        self._speeds = speeds
        wanted = context or min(model.config.max_context, DEFAULT_CONTEXT)
        self._contexts = [wanted]
        while context is None and self._contexts[-1] // 2 >= LEAST_CONTEXT:
            self._contexts.append(self._contexts[-1] // 2)
        self._advice = advice
        self._start = Setup(self._advice.name, "int8", "bfloat16", target.cores, concurrency or 1, wanted)
        self._order: FormatOrder = order_formats(model, target, self._start, speeds)

    def plan(self) -> Plan:
        setup = self._search()
        speed = None if setup is None else self._speeds.of(self._config, setup, self._target)
        refused = (*self._refused_formats(setup, speed), *self._refused_caches(setup), *self._refused_backends())
        if setup is None:
            return self._result(None, None, (), refused, self._would_fit())
        return self._result(setup, speed, self._choices(setup), refused, ())

    def _result(
        self,
        setup: Setup | None,
        speed: SpeedEstimate | None,
        choices: tuple[Choice, ...],
        refused: tuple[Choice, ...],
        would_fit: tuple[str, ...],
    ) -> Plan:
        return Plan(
            model=self._model.name,
            parameters=self._config.num_parameters(),
            target=self._target,
            usable_memory=self._usable,
            setup=setup,
            memory=None if setup is None else estimate_memory(self._config, setup, self._target),
            speed=speed,
            choices=choices,
            refused=refused,
            would_fit=would_fit,
            notes=self._notes(setup, speed),
            command=() if setup is None else serve_command(self._model, setup),
        )

    # What is tried

    def _tries(self, contexts: Iterable[int]) -> Iterable[Setup]:
        """Contexts first, for a shorter one is only taken when no format has room for a longer."""
        for context in contexts:
            for weights in self._order.formats:
                for kv_dtype in cache_types(self._start.backend, weights):
                    yield replace(self._start, weights=weights, kv_dtype=kv_dtype, context=context)

    def _search(self) -> Setup | None:
        for tried in self._tries(self._contexts):
            found = fit_batch(self._config, tried, self._target, self._usable, self._concurrency)
            if found is not None:
                return found
        return None

    # What is said

    def _choices(self, setup: Setup) -> tuple[Choice, ...]:
        longest, wanted = self._config.max_context, self._contexts[0]
        first = self._order.formats[0]
        if setup.weights == first:
            weights = self._order.reason
        else:
            weights = f"the first of {', '.join(self._order.formats)} that fits {_megabytes(self._usable)}"
        types = cache_types(setup.backend, setup.weights)
        if setup.kv_dtype == types[0]:
            cache = "the backend's own choice beside these weights, and it fits"
        else:
            cache = f"half of {types[0]} or less, which does not fit with {setup.context} tokens of context"
        if self._asked_context:
            context = "as asked for"
        elif setup.context < wanted:
            context = f"{wanted} tokens did not fit; the model has {longest}"
        elif longest > wanted:
            context = f"enough for most uses; the model has {longest}, which --context asks for"
        else:
            context = "all that the model has"
        if self._concurrency:
            batch = "as asked for"
        elif setup.sequences == MAX_SEQUENCES:
            batch = "the most that the engine takes by itself, and all have their whole context"
        else:
            batch = "whole contexts that a quarter of the free memory holds, or one"
        threads = "one for each core; products are divided among all"
        if self._target.kind == "nvidia-gpu":
            threads = "of the processor beside the GPU"
        return (
            Choice("backend", setup.backend, self._advice.reason),
            Choice("weights", setup.weights, weights),
            Choice("KV cache", setup.kv_dtype, cache),
            Choice("context", str(setup.context), context),
            Choice("batch", str(setup.sequences), batch),
            Choice("threads", str(setup.threads), threads),
        )

    def _refused_formats(self, chosen: Setup | None, speed: SpeedEstimate | None) -> list[Choice]:
        found: list[Choice] = []
        for weights in FORMATS:
            if chosen is not None and weights == chosen.weights:
                continue
            if weights not in self._order.formats:
                found.append(Choice("weights", weights, self._order.impossible.get(weights, "not computed here")))
                continue
            kv_dtype = cache_types(self._start.backend, weights)[-1]
            context = self._contexts[-1] if chosen is None else chosen.context
            tried = replace(self._start, weights=weights, kv_dtype=kv_dtype, context=context)
            need = takes(self._config, tried, self._target)
            if need > self._usable:
                found.append(Choice("weights", weights, f"takes {_megabytes(need)} of {_megabytes(self._usable)}"))
            elif chosen is not None:
                found.append(Choice("weights", weights, self._why_not(tried, chosen, speed, need)))
        return found

    def _why_not(self, tried: Setup, chosen: Setup, here: SpeedEstimate | None, need: int) -> str:
        weights = tried.weights
        usual = replace(tried, kv_dtype=cache_types(tried.backend, weights)[0], sequences=chosen.sequences)
        there = self._speeds.alone(self._config, usual, self._target)
        speeds = "" if there is None or here is None else f", {there:.1f} tokens/s for {here.decode_x1:.1f}"
        loss = self._model.losses.get(weights)
        if loss is not None:
            return f"costs {loss:.2%} of the metric, as the bundle says{speeds}"
        if FORMATS.index(weights) < FORMATS.index(chosen.weights):
            return f"fits too, but {_megabytes(need)} of memory{speeds}"
        return f"rounds more than it has to{speeds}"

    def _refused_caches(self, chosen: Setup | None) -> list[Choice]:
        if chosen is None:
            return []
        found: list[Choice] = []
        for kv_dtype in cache_types(chosen.backend, chosen.weights):
            if kv_dtype == chosen.kv_dtype:
                continue
            need = takes(self._config, replace(chosen, kv_dtype=kv_dtype), self._target)
            if need > self._usable:
                reason = f"the whole then takes {_megabytes(need)} of {_megabytes(self._usable)}"
            else:
                reason = "not needed to fit; it rounds keys and values, and is faster with long contexts only"
                if FORMATS.index(kv_dtype) < FORMATS.index(chosen.kv_dtype):
                    reason = "twice the memory for next to no gain"
            found.append(Choice("KV cache", kv_dtype, reason))
        return found

    def _refused_backends(self) -> list[Choice]:
        return [Choice("backend", name, reason) for name, reason in self._advice.refused.items()]

    def _would_fit(self) -> tuple[str, ...]:
        """What to change when nothing fits, the nearest first."""
        tries = list(self._tries(self._contexts[-1:]))
        least = min(tries, key=lambda tried: takes(self._config, tried, self._target))
        need = takes(self._config, least, self._target)
        said = [
            f"{_megabytes(need)} of memory: {least.weights} weights and a {least.kv_dtype} cache of "
            f"{least.sequences} x {least.context} tokens on the {least.backend} backend; "
            f"{_megabytes(self._usable)} can be used"
        ]
        context = longest_context(self._config, least, self._target, self._usable)
        if context:
            said.append(f"--context {context}, with the same formats")
        if least.sequences > 1:
            sequences = most_sequences(self._config, least, self._target, self._usable)
            if sequences:
                said.append(f"--concurrency {sequences}, with the same formats and context")
        roomy = [
            other.name
            for other in self._others
            if other.name != self._target.name
            and plan_model(self._model, other, context=self._asked_context, concurrency=self._concurrency).fits
        ]
        if roomy:
            said.append(f"another target: {', '.join(roomy)}")
        said.append("a smaller model, or one with fewer layers or key-value heads")
        return tuple(said)

    def _notes(self, setup: Setup | None, speed: SpeedEstimate | None) -> tuple[str, ...]:
        target = self._target
        notes: list[str] = []
        if setup is not None and (not target.bandwidth or "float32" not in target.rates):
            notes.append("no speeds: how fast this machine is could not be measured without the compiled engine")
        known = efficiency_of(self._start.backend, target)
        if speed is not None and speed.measured_layers is not None:
            notes.append(_measured_note(speed.measured_layers, self._config.num_hidden_layers))
        elif not known.measured:
            notes.append(f"speeds rest on assumptions ({'; '.join(known.sources)})")
        elif not target.is_this_machine and MEASURED_FEATURE not in target.features:
            notes.append(
                "speeds rest on published figures and on shares of them that were measured with AVX2; the engine was "
                "not measured on this device"
            )
        elif not target.is_this_machine:
            notes.append("speeds rest on published figures; the engine was not measured on this device")
        elif speed is not None:
            notes.append("speeds are computed from what this machine's memory and processor give; they were not timed")
        if setup is not None and setup.weights not in ("float32", *self._model.ready) and not self._model.stored_bits:
            notes.append(f"the weights are rounded to {setup.weights} when they are loaded")
        return tuple(notes)


def serve_command(model: PlannedModel, setup: Setup) -> tuple[str, ...]:
    """The command that serves a model so."""
    words = ["open-autoglm", "serve", model.path or "MODEL", "--backend", setup.backend]
    if model.stored_bits is None:
        if setup.weights in ("int8", "int4"):
            words += ["--quantize", setup.weights]
        else:
            words += ["--dtype", setup.weights]
    words += ["--kv-cache-dtype", setup.kv_dtype, "--threads", str(setup.threads)]
    words += ["--max-num-seqs", str(setup.sequences), "--kv-blocks", str(kv_blocks(setup))]
    words += ["--block-size", str(BLOCK_SIZE)]
    return tuple(words)


def _measured_note(timed: int, layers: int) -> str:
    what = "all its layers" if timed == layers else f"{timed} of its {layers} layers, which are counted for the others"
    return f"speeds were measured here just now, on random weights of this shape: {what}; other programs lower them"


def _megabytes(size: float) -> str:
    return f"{size / _MEGABYTE:,.0f} MB" if size < 1e10 else f"{size / 1e9:,.1f} GB"
