# SPDX-License-Identifier: Apache-2.0
"""What the search may choose: the architecture of a small GLM and how it is trained, as parameters with defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.config import ModelConfig
from open_autoglm.search.parameters import (
    Categorical,
    Parameter,
    ParameterSpace,
    Value,
    categorical,
    integer,
    log_uniform,
    uniform,
)
from open_autoglm.spelling import did_you_mean
from open_autoglm.task import TaskKind
from open_autoglm.train.settings import TrainingSettings

_FEED_FORWARD_STEP: Final = 32
_ADAPTER: Final = "adapter_"

ARCHITECTURE: Final[tuple[Parameter, ...]] = (
    categorical("architecture", ("GlmForCausalLM", "Glm4ForCausalLM")),
    integer("layers", 2, 6),
    integer("hidden_size", 96, 320, step=32),
    categorical("head_dim", (32, 64)),
    categorical("key_value_sharing", (1, 2, 3)),
    uniform("feed_forward_ratio", 2.0, 4.0, step=0.5),
    categorical("partial_rotary_factor", (0.5, 1.0)),
    categorical("tie_word_embeddings", (True, False)),
)
"""What makes a model. key_value_sharing: query heads for each key head. feed_forward_ratio: of the hidden size."""

OPTIMISATION: Final[tuple[Parameter, ...]] = (
    log_uniform("learning_rate", 1e-3, 8e-3),
    categorical("tokens_per_batch", (512, 1024, 2048)),
    integer("warmup_steps", 20, 120, step=20),
    log_uniform("weight_decay", 0.01, 0.3),
    uniform("dropout", 0.0, 0.15, step=0.05),
    categorical("optimizer", ("adamw", "muon")),
    uniform("label_smoothing", 0.0, 0.1, step=0.05),
    categorical("ema_decay", (0.99, 0.998)),
    uniform("bpe_dropout", 0.0, 0.1, step=0.05),
)
"""How a model is trained from nothing; those that `TrainingSettings` has no field for are left out.

Weights are always averaged, since trials train at a constant rate: the average says what the weights are worth once the
rate falls, where the last weights favour low rates and whatever else is calm early on.
"""

FINE_TUNING: Final[tuple[Parameter, ...]] = (
    log_uniform("learning_rate", 2e-6, 2e-4),
    categorical("tokens_per_batch", (512, 1024, 2048)),
    integer("warmup_steps", 20, 120, step=20),
    log_uniform("weight_decay", 0.01, 0.3),
    uniform("dropout", 0.0, 0.15, step=0.05),
)
"""How a given checkpoint is trained further, all of its weights."""

ADAPTERS: Final[dict[str, tuple[Parameter, ...]]] = {
    "lora": (
        categorical("adapter_rank", (4, 8, 16, 32)),
        categorical("adapter_alpha", (8, 16, 32)),
        categorical("adapter_targets", ("attention", "all")),
        uniform("adapter_dropout", 0.0, 0.1, step=0.05),
    ),
    "soft_prompt": (categorical("adapter_prompt_length", (8, 16, 32, 64)),),
}
"""What more there is to choose for a kind of adapter whose settings are the usual ones; `qlora` has what `lora` has."""

_ADAPTER_LEARNING_RATE: Final = log_uniform("learning_rate", 2e-5, 2e-3)
_AUGMENTATION: Final = uniform("augmentation", 0.0, 0.9, step=0.1)
_AUGMENTED: Final = (TaskKind.EXTRACTION, TaskKind.CLASSIFICATION)

DEFAULTS: Final[dict[str, Value]] = {
    "architecture": "Glm4ForCausalLM",
    "layers": 3,
    "hidden_size": 192,
    "head_dim": 32,
    "key_value_sharing": 1,
    "feed_forward_ratio": 2.5,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "learning_rate": 4e-3,
    "tokens_per_batch": 1024,
    "warmup_steps": 60,
    "weight_decay": 0.1,
    "dropout": 0.0,
    "augmentation": 0.7,
    "optimizer": "muon",
    "label_smoothing": 0.0,
    "ema_decay": 0.99,
    "bpe_dropout": 0.0,
}
"""The first trial: what did well on the data sets that we tried, so that a short search is never worse than none."""

_EXTRACTION_DEFAULTS: Final[dict[str, Value]] = {
    **DEFAULTS,
    "layers": 5,
    "hidden_size": 128,
    "learning_rate": 5e-3,
    "tokens_per_batch": 2048,
}
"""Answers copied from the input bear larger batches, for which an update by Muon is cheaper; and fewer parameters in
more layers, which see more of the data in the same time."""

_CLASSIFICATION_DEFAULTS: Final[dict[str, Value]] = {
    **DEFAULTS,
    "augmentation": 0.5,
    "label_smoothing": 0.1,
    "dropout": 0.1,
}
"""Muon fits a few thousand labelled texts long before the budget ends; without these it ends no better than halfway."""
_KIND_DEFAULTS: Final = {
    TaskKind.EXTRACTION: _EXTRACTION_DEFAULTS,
    TaskKind.CLASSIFICATION: _CLASSIFICATION_DEFAULTS,
}

_BASE_DEFAULTS: Final[dict[str, Value]] = {
    **DEFAULTS,
    "optimizer": "adamw",
    "tokens_per_batch": 512,
    "learning_rate": 2e-5,
    "weight_decay": 0.01,
    "ema_decay": 0.0,
}
_ADAPTER_DEFAULTS: Final[dict[str, Value]] = {
    **_BASE_DEFAULTS,
    "learning_rate": 2e-4,
    "adapter_rank": 8,
    "adapter_alpha": 16,
    "adapter_targets": "all",
    "adapter_dropout": 0.0,
    "adapter_prompt_length": 16,
}

_TARGETS: Final[dict[Value, tuple[str, ...]]] = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "all": ("all",)}


@dataclass(frozen=True)
class Candidate:
    """One choice of everything: which GLM, and how to train it."""

    config: ModelConfig
    settings: TrainingSettings


@dataclass(frozen=True)
class Frame:
    """What the data fixes of every model: the sizes that its tokenizer and its longest example ask for."""

    vocab_size: int
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int


@dataclass(frozen=True)
class SearchSpace:
    """The space for one data set.

    parameters: what may be chosen. defaults: the first trial, one value for each parameter. fixed: what a user's file
    gives one value. base: the architecture of a given checkpoint, which then stays as it is, or None to search one as
    well. training: settings that no parameter chooses. front: architectures of which one is chosen in place of their
    single parameters, such as those that an evolution found under a constraint.
    """

    frame: Frame
    seed: int
    parameters: ParameterSpace
    defaults: dict[str, Value]
    fixed: dict[str, Value] = field(default_factory=dict)
    base: ModelConfig | None = None
    training: TrainingSettings = field(default_factory=TrainingSettings)
    front: tuple[ModelConfig, ...] = ()

    def candidate(self, values: Mapping[str, Value]) -> Candidate:
        """What the values of a trial describe. Raises ConfigurationError for values that the space does not have."""
        chosen: dict[str, Value] = {**self.fixed, **self.parameters.check(values)}
        settings = self._settings(chosen)
        if self.base is not None:
            config = self.base
        elif self.front:
            config = self.front[int(chosen.get(FRONT, 0))]
        else:
            config = architecture_of(self.frame, chosen)
        return Candidate(replace(config, dropout=settings.dropout), settings)

    def with_front(self, front: tuple[ModelConfig, ...]) -> SearchSpace:
        """The space in which an architecture is one of `front`; the first is the default."""
        architectural = {parameter.name for parameter in ARCHITECTURE}
        kept = tuple(p for p in self.parameters.parameters if p.name not in architectural)
        first: tuple[Parameter, ...] = (categorical(FRONT, tuple(range(len(front)))),) if len(front) > 1 else ()
        defaults = {name: value for name, value in self.defaults.items() if name not in architectural}
        return replace(
            self,
            parameters=ParameterSpace((*first, *kept)),
            defaults={**({FRONT: 0} if first else {}), **defaults},
            front=front,
        )

    def architectural(self) -> ParameterSpace:
        """The part of the space that an evolution of architectures searches."""
        names = {parameter.name for parameter in ARCHITECTURE}
        return ParameterSpace(tuple(p for p in self.parameters.parameters if p.name in names))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in the form that `--space` reads: ranges with their defaults, and what is fixed."""
        shown = self.parameters.to_dict()
        described: dict[str, Any] = {
            name: {**values, "default": self.defaults[name]} if name in self.defaults else values
            for name, values in shown.items()
        }
        return {"parameters": {**described, **self.fixed}}

    def _settings(self, chosen: Mapping[str, Value]) -> TrainingSettings:
        known = {item.name for item in dataclasses.fields(TrainingSettings)}
        changes: dict[str, Any] = {name: value for name, value in chosen.items() if name in known}
        adapter = self.training.adapter
        if adapter is not None:
            parts: dict[str, Any] = {
                name.removeprefix(_ADAPTER): value for name, value in chosen.items() if name.startswith(_ADAPTER)
            }
            if "targets" in parts:
                parts["targets"] = _TARGETS[parts["targets"]]
            changes["adapter"] = replace(adapter, **parts)
        return replace(self.training, **{"seed": self.seed, **changes})


FRONT: Final = "front"
"""The parameter that chooses among the architectures of an evolution."""


def default_space(
    kind: TaskKind,
    frame: Frame,
    *,
    seed: int,
    base: ModelConfig | None = None,
    training: TrainingSettings | None = None,
) -> SearchSpace:
    """The space that is searched when the user gives none.

    training: what the user chose of the training; an adapter in it brings its own parameters.
    """
    settings = training or TrainingSettings()
    parameters, defaults = _parameters(kind, base, settings)
    fields = _known_fields()
    parameters = tuple(p for p in parameters if p.name in fields or p.name.startswith(_ADAPTER) or p in ARCHITECTURE)
    space = ParameterSpace(parameters)
    return SearchSpace(
        frame=frame,
        seed=seed,
        parameters=space,
        defaults={name: defaults[name] for name in space.names},
        base=base,
        training=settings,
    )


def architecture_of(frame: Frame, values: Mapping[str, Value]) -> ModelConfig:
    """The GLM that architectural values describe; what is missing is as in `DEFAULTS`."""
    chosen = {**DEFAULTS, **values}
    hidden, head_dim = int(chosen["hidden_size"]), int(chosen["head_dim"])
    heads = max(1, hidden // head_dim)
    sharing = int(chosen["key_value_sharing"])
    steps = round(hidden * float(chosen["feed_forward_ratio"]) / _FEED_FORWARD_STEP)
    return ModelConfig(
        vocab_size=frame.vocab_size,
        hidden_size=hidden,
        intermediate_size=max(1, steps) * _FEED_FORWARD_STEP,
        num_hidden_layers=int(chosen["layers"]),
        num_attention_heads=heads,
        num_key_value_heads=heads // sharing if heads % sharing == 0 else heads,
        head_dim=head_dim,
        architecture=str(chosen["architecture"]),
        max_position_embeddings=frame.max_position_embeddings,
        partial_rotary_factor=float(chosen["partial_rotary_factor"]),
        attention_bias=bool(chosen["attention_bias"]),
        tie_word_embeddings=bool(chosen["tie_word_embeddings"]),
        eos_token_ids=frame.eos_token_ids,
        pad_token_id=frame.pad_token_id,
    )


def override(
    space: SearchSpace, parameters: tuple[Parameter, ...], defaults: Mapping[str, Value], fixed: Mapping[str, Value]
) -> SearchSpace:
    """The space with some parameters replaced, given another default, or fixed to one value.

    A default that a new range does not hold moves to the nearest value that it does.
    Raises ConfigurationError for a name that neither the space nor the training settings know.
    """
    known = {*space.parameters.names, *_searchable(space)}
    for name in (*(parameter.name for parameter in parameters), *fixed, *defaults):
        if name not in known:
            raise ConfigurationError(f"there is no parameter '{name}' to search here{did_you_mean(name, known)}")
    replaced = {parameter.name: parameter for parameter in parameters}
    kept = [replaced.pop(p.name, p) for p in space.parameters.parameters if p.name not in fixed]
    chosen = ParameterSpace((*kept, *replaced.values()))
    usual: dict[str, Any] = {
        item.name: getattr(space.training, item.name) for item in dataclasses.fields(TrainingSettings)
    }
    wanted = {**DEFAULTS, **usual, **space.defaults, **defaults}
    settled: dict[str, Value] = {}
    for parameter in chosen.parameters:
        value = wanted.get(parameter.name)
        try:
            settled[parameter.name] = parameter.check(value)
        except ConfigurationError:
            if parameter.name in defaults:
                raise
            settled[parameter.name] = _nearest(parameter, value)
    kept_fixed = {**space.fixed, **{name: _as_usual(name, value) for name, value in fixed.items()}}
    found = replace(space, parameters=chosen, defaults=settled, fixed=kept_fixed)
    try:
        found.candidate(settled)
        for parameter in parameters:
            for value in _ends(parameter):
                found.candidate({**settled, parameter.name: value})
    except CheckpointError as error:
        raise ConfigurationError(f"some of these values make no model: {error}") from None
    return found


def _ends(parameter: Parameter) -> tuple[Value, ...]:
    """The values among which all others lie: the bounds, or every choice."""
    return (
        parameter.choices
        if isinstance(parameter, Categorical)
        else (parameter.check(parameter.low), parameter.check(parameter.high))
    )


def _as_usual(name: str, value: Value) -> Value:
    """A fixed value, which must be of the kind of the default: text, true or false, or a number."""
    usual = DEFAULTS.get(name, getattr(TrainingSettings(), name, None))
    same = isinstance(value, bool | str) == isinstance(usual, bool | str) and (
        not isinstance(usual, bool | str) or type(value) is type(usual)
    )
    if not same or (isinstance(usual, int) and value != int(value)):
        kind = "text" if isinstance(usual, str) else "true or false" if isinstance(usual, bool) else "a number"
        kind = "a whole number" if kind == "a number" and isinstance(usual, int) else kind
        raise ConfigurationError(f"{name} must be {kind}, not {value!r}")
    return int(value) if isinstance(usual, int) and not isinstance(usual, bool) else value


def _nearest(parameter: Parameter, value: Value | None) -> Value:
    if isinstance(value, int | float) and not isinstance(value, bool) and parameter.size == 1:
        try:
            return parameter.decode(parameter.encode(value))
        except ValueError:
            pass
    return parameter.decode(parameter.neutral)


def _parameters(
    kind: TaskKind, base: ModelConfig | None, training: TrainingSettings
) -> tuple[tuple[Parameter, ...], dict[str, Value]]:
    augmentation: tuple[Parameter, ...] = (_AUGMENTATION,) if kind in _AUGMENTED else ()
    if base is None:
        return (*ARCHITECTURE, *OPTIMISATION, *augmentation), _KIND_DEFAULTS.get(kind, DEFAULTS)
    adapter = training.adapter
    if adapter is None:
        return (*FINE_TUNING, *augmentation), _BASE_DEFAULTS
    if adapter != AdapterSettings(kind=adapter.kind):  # the user said how it shall be
        rest = tuple(parameter for parameter in FINE_TUNING if parameter.name != "learning_rate")
        return (_ADAPTER_LEARNING_RATE, *rest, *augmentation), _ADAPTER_DEFAULTS
    own = ADAPTERS["soft_prompt" if adapter.kind == "soft_prompt" else "lora"]
    rest = tuple(parameter for parameter in FINE_TUNING if parameter.name != "learning_rate")
    return (_ADAPTER_LEARNING_RATE, *own, *rest, *augmentation), _ADAPTER_DEFAULTS


def _known_fields() -> set[str]:
    return {item.name for item in dataclasses.fields(TrainingSettings)} - {"seed"}


def _searchable(space: SearchSpace) -> set[str]:
    """Names that a file may bring into the space although the default one does not search them."""
    settings = _known_fields() - {"adapter", "width_transfer"}
    return settings if space.base is not None else settings | {parameter.name for parameter in ARCHITECTURE}
