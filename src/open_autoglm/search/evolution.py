# SPDX-License-Identifier: Apache-2.0
"""Architectures under a hardware constraint, found without training them: an evolution over cheap predictions.

Two objectives: the loss that a model of so many decoder parameters reaches with the computation that the budget has,
and the time of one answer on the engine. Memory and file size follow from the shape. What breaks the constraint gives
way to what keeps it. Only a few of the front are trained afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from open_autoglm.errors import ConfigurationError
from open_autoglm.models.config import ModelConfig
from open_autoglm.search.plan import training_flops
from open_autoglm.search.space import SearchSpace, architecture_of
from open_autoglm.storage import write_atomic, write_json
from open_autoglm.targets import HardwareConstraint

PARETO_FILE: Final = "pareto.json"
PARETO_PLOT: Final = "pareto.svg"

_POPULATION: Final = 32
_GENERATIONS: Final = 12
_CHOSEN: Final = 4
_MOST_SEEN: Final = 300

_ENTROPY: Final = 1.69
_BY_PARAMETERS: Final = (406.4, 0.34)
_BY_TOKENS: Final = (410.7, 0.28)


class Predictor(Protocol):
    """What tells the costs of an architecture without running it."""

    def predict(self, config: ModelConfig) -> dict[str, float]:
        """A value for each of `targets.LIMITS`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        ...


@dataclass(frozen=True)
class Member:
    """An architecture on the front: what is predicted of it. loss: of `predicted_loss`; it ranks and means no more."""

    config: ModelConfig
    loss: float
    predicted: dict[str, float]
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the page and for people."""
        config = self.config
        return {
            "architecture": config.architecture,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "heads": config.num_attention_heads,
            "key_value_heads": config.num_key_value_heads,
            "intermediate_size": config.intermediate_size,
            "decoder_parameters": config.num_decoder_parameters(),
            "loss": self.loss,
            **self.predicted,
            "chosen": self.chosen,
            "config": config.to_dict(),
        }


@dataclass(frozen=True)
class ParetoFront:
    """What an evolution found.

    members: no other is both faster and better, the best first; all keep the constraint. seen: time in milliseconds and
    predicted loss of what it looked at.
    """

    members: tuple[Member, ...]
    constraint: HardwareConstraint
    model: Predictor
    seen: tuple[tuple[float, float], ...]

    @property
    def chosen(self) -> tuple[ModelConfig, ...]:
        """The architectures to train, the best first."""
        return tuple(member.config for member in self.members if member.chosen)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "constraint": self.constraint.to_dict(),
            "latency_model": self.model.to_dict(),
            "members": [member.to_dict() for member in self.members],
            "seen": [list(pair) for pair in self.seen],
        }

    def save(self, folder: Path) -> None:
        """Write `pareto.json` and its plot. Raises StorageError."""
        from open_autoglm.search.leaderboard_page import draw_front

        values = self.to_dict()
        write_json(folder / PARETO_FILE, values)
        write_atomic(folder / PARETO_PLOT, draw_front(values, standalone=True))


def predicted_loss(config: ModelConfig, flops: float, mean_length: float) -> float:
    """The loss that a model of this size reaches when `flops` are spent on training it.

    More decoder parameters are better (they rank models of this size well whatever their shape), but with a given
    amount of computation a larger model sees fewer tokens. The figures are those of large models, of which only the
    order is used.
    Source: Hoffmann et al. 2022, approach 3; Javaheripi et al. 2022 (LiteTransformerSearch) for the parameters.
    """
    tokens = flops / training_flops(config, mean_length)
    (a, alpha), (b, beta) = _BY_PARAMETERS, _BY_TOKENS
    return _ENTROPY + a * config.num_decoder_parameters() ** -alpha + b * tokens**-beta


def evolve(
    space: SearchSpace,
    model: Predictor,
    constraint: HardwareConstraint,
    *,
    flops: float,
    mean_length: float,
    generations: int = _GENERATIONS,
) -> ParetoFront:
    """Search the architectural part of a space by NSGA-II. Deterministic given the space's seed.

    flops: that training the winner may spend. Raises ConfigurationError, with the nearest architecture, when none of
    those that were seen keeps the constraint.
    """
    parameters = space.architectural()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=space.seed)
        study = optuna.create_study(directions=("minimize", "minimize"), sampler=sampler)
    known: dict[ModelConfig, dict[str, float]] = {}

    def look(trial: optuna.Trial) -> tuple[float, float]:
        config = architecture_of(space.frame, {**space.fixed, **parameters.suggest(trial)})
        predicted = known.setdefault(config, model.predict(config))
        for name, missed in constraint.violations(predicted).items():
            trial.set_constraint(name, missed)
        return predicted_loss(config, flops, mean_length), predicted["latency_ms"]

    study.enqueue_trial({name: space.defaults[name] for name in parameters.names})
    study.optimize(look, n_trials=_POPULATION * generations)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    configs = {trial.number: architecture_of(space.frame, {**space.fixed, **trial.params}) for trial in trials}
    fitting = [t for t in trials if all(v <= 0 for v in constraint.violations(known[configs[t.number]]).values())]
    if not fitting:
        raise ConfigurationError(_nobody(constraint, [known[configs[trial.number]] for trial in trials]))
    members = _front(fitting, configs, known)
    return ParetoFront(members, constraint, model, tuple((t.values[1], t.values[0]) for t in trials[:_MOST_SEEN]))


def _front(
    trials: Sequence[FrozenTrial], configs: dict[int, ModelConfig], known: dict[ModelConfig, dict[str, float]]
) -> tuple[Member, ...]:
    """Those that no other beats in both, by falling quality; a few of the first are to be trained."""
    ordered = sorted(trials, key=lambda trial: (trial.values[0], trial.values[1], trial.number))
    kept: list[FrozenTrial] = []
    for trial in ordered:
        if not kept or trial.values[1] < kept[-1].values[1]:
            kept.append(trial)
    # The best predictions lie close together and may be in the wrong order: the first quarter is worth comparing.
    span = max(1, min(len(kept), max(_CHOSEN, len(kept) // 4)))
    wanted = {round(place * (span - 1) / max(1, _CHOSEN - 1)) for place in range(_CHOSEN)}
    return tuple(
        Member(configs[trial.number], trial.values[0], known[configs[trial.number]], place in wanted)
        for place, trial in enumerate(kept)
    )


def _nobody(constraint: HardwareConstraint, found: Sequence[dict[str, float]]) -> str:
    """No architecture keeps the constraint: which comes nearest, and what it would take."""
    nearest = min(found, key=lambda values: sum(max(0.0, v) for v in constraint.violations(values).values()))
    missed = [name for name, value in constraint.violations(nearest).items() if value > 0]
    asked = ", ".join(f"{name} {value:g}" for name, value in constraint.to_dict().items())
    has = ", ".join(f"{name} {nearest[name]:.3g}" for name in missed)
    return (
        f"no architecture of the search space keeps the constraint ({asked}); the nearest one has {has}. Ask for that "
        "much, or give smaller architectures with --space"
    )
