# SPDX-License-Identifier: Apache-2.0
"""Parameters that a search may choose: ranges, choices and conditions, with one encoding to a vector and back.

Every sampler of ours works on that vector, so a logarithmic range, a step, a choice and a parameter that does not apply
mean the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean

Value = str | int | float | bool
"""What a parameter can be."""

NEUTRAL: Final = 0.5
"""Where a numeric parameter that does not apply stands in the encoding: in the middle."""

_GRID_TOLERANCE: Final = 1e-6
_DIGITS: Final = 12


@dataclass(frozen=True)
class Condition:
    """A parameter applies only while another, that comes before it, has one of these values."""

    parameter: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Number:
    """A parameter between two bounds, both of which it can take.

    step: the distance of the values that it can take, counted from `low`; None for any. is_log: as many values are
    tried between 1 and 10 as between 10 and 100.
    Raises ConfigurationError when the bounds make no range, or the step does not lead from one to the other.
    """

    name: str
    low: float
    high: float
    step: float | None = None
    is_log: bool = False
    is_integer: bool = False
    condition: Condition | None = None

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
                raise ConfigurationError(f"{self.name}: a bound must be a finite number, not {bound!r}")
        if self.low >= self.high:
            raise ConfigurationError(f"{self.name}: the lower bound {self.low:g} must be less than {self.high:g}")
        if self.is_log and (self.low <= 0 or self.step is not None):
            raise ConfigurationError(f"{self.name}: a logarithmic range begins above zero and has no step")
        if self.is_integer and any(float(bound) != int(bound) for bound in (self.low, self.high, self.step or 1)):
            raise ConfigurationError(f"{self.name}: an integer has whole bounds and a whole step")
        if self.step is not None:
            count = (self.high - self.low) / self.step if self.step > 0 else -1.0
            if count < 1 - _GRID_TOLERANCE or abs(count - round(count)) > _GRID_TOLERANCE * max(1.0, count):
                raise ConfigurationError(f"{self.name}: steps of {self.step:g} do not lead to {self.high:g}")

    @property
    def size(self) -> int:
        """Numbers of its encoding."""
        return 1

    @property
    def neutral(self) -> np.ndarray:
        """The encoding while it does not apply."""
        return np.array([NEUTRAL])

    def when(self, parameter: str, *values: Value) -> Number:
        """The same, applying only while `parameter` has one of `values`."""
        return replace(self, condition=Condition(parameter, values))

    def encode(self, value: Value) -> np.ndarray:
        """float64[1] in [0, 1], evenly over the range or over its logarithm."""
        low, high, at = (math.log(x) if self.is_log else x for x in (self.low, self.high, float(value)))
        return np.array([(at - low) / (high - low)])

    def decode(self, vector: np.ndarray) -> Value:
        """The nearest value that it can take."""
        share = min(1.0, max(0.0, float(vector[0])))
        if self.is_log:
            found = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + share * (self.high - self.low)
        found = min(max(found, self.low), self.high)
        step = self.step or (1 if self.is_integer and not self.is_log else None)
        if step is not None:
            found = round(self.low + round((found - self.low) / step) * step, _DIGITS)
        return round(found) if self.is_integer else found

    def check(self, value: object) -> Value:
        """The value as this parameter has it. Raises ConfigurationError for one that it cannot take."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigurationError(f"{self.name} must be a number, not {value!r}")
        slack = _GRID_TOLERANCE * (self.high - self.low)
        if not self.low - slack <= value <= self.high + slack:
            raise ConfigurationError(f"{self.name} must be between {self.low:g} and {self.high:g}, not {value:g}")
        if self.is_integer and value != int(value):
            raise ConfigurationError(f"{self.name} must be a whole number, not {value:g}")
        if self.step is not None:
            place = (value - self.low) / self.step
            if abs(place - round(place)) > _GRID_TOLERANCE * max(1.0, abs(place)):
                raise ConfigurationError(f"{self.name} goes in steps of {self.step:g} from {self.low:g}, not {value:g}")
            value = round(self.low + round(place) * self.step, _DIGITS)
        value = min(max(value, self.low), self.high)
        return round(value) if self.is_integer else float(value)

    def draw(self, generator: np.random.Generator) -> Value:
        """A value, each as likely as its share of the encoding."""
        if self.step is None and not (self.is_integer and not self.is_log):
            return self.decode(np.array([generator.random()]))
        places = round((self.high - self.low) / (self.step or 1))
        return self.decode(np.array([generator.integers(0, places + 1) / places]))

    def near(self, value: Value, generator: np.random.Generator, spread: float) -> Value:
        """A value around another: normally distributed in the encoding, thrown back at the bounds."""
        at = abs(float(self.encode(value)[0]) + spread * generator.normal()) % 2.0
        return self.decode(np.array([2.0 - at if at > 1.0 else at]))

    def suggest(self, trial: Any) -> Value:
        """Ask an Optuna trial for it."""
        if self.is_integer:
            return trial.suggest_int(
                self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.is_log
            )
        found = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.is_log)
        return found if self.step is None else round(found, _DIGITS)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as a file of a space has it."""
        kind = "integer" if self.is_integer else "log_uniform" if self.is_log else "uniform"
        values: dict[str, Any] = {kind: [self.low, self.high]}
        if self.step is not None:
            values["step"] = self.step
        if self.is_integer and self.is_log:
            values["log"] = True
        return {**values, **_condition_dict(self.condition)}


@dataclass(frozen=True)
class Categorical:
    """A parameter that is one of a few values without order.

    Raises ConfigurationError for choices that are not several different ones.
    """

    name: str
    choices: tuple[Value, ...]
    condition: Condition | None = None

    def __post_init__(self) -> None:
        if len({_key(choice) for choice in self.choices}) != len(self.choices) or not self.choices:
            raise ConfigurationError(f"{self.name}: choices must be different from each other, and at least one")
        for choice in self.choices:
            if not isinstance(choice, str | int | float):
                raise ConfigurationError(f"{self.name}: {choice!r} is neither text nor a number nor true or false")

    @property
    def size(self) -> int:
        """Numbers of its encoding: one for each choice."""
        return len(self.choices)

    @property
    def neutral(self) -> np.ndarray:
        """The encoding while it does not apply: no choice more than another."""
        return np.full(self.size, 1 / self.size)

    def when(self, parameter: str, *values: Value) -> Categorical:
        """The same, applying only while `parameter` has one of `values`."""
        return replace(self, condition=Condition(parameter, values))

    def encode(self, value: Value) -> np.ndarray:
        """float64[size]: 1 at the choice, 0 elsewhere."""
        vector = np.zeros(self.size)
        vector[self._place(value)] = 1.0
        return vector

    def decode(self, vector: np.ndarray) -> Value:
        """The choice with the largest number."""
        return self.choices[int(np.argmax(vector))]

    def check(self, value: object) -> Value:
        """The choice. Raises ConfigurationError for anything else."""
        return self.choices[self._place(value)]

    def draw(self, generator: np.random.Generator) -> Value:
        """Any choice, each as likely."""
        return self.choices[int(generator.integers(self.size))]

    def near(self, value: Value, generator: np.random.Generator, spread: float) -> Value:
        """Another choice; the value itself where there is none."""
        del spread
        others = [choice for choice in self.choices if _key(choice) != _key(value)]
        return others[int(generator.integers(len(others)))] if others else value

    def suggest(self, trial: Any) -> Value:
        """Ask an Optuna trial for it."""
        return trial.suggest_categorical(self.name, self.choices)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as a file of a space has it."""
        return {"categorical": list(self.choices), **_condition_dict(self.condition)}

    def _place(self, value: object) -> int:
        for place, choice in enumerate(self.choices):
            if _key(choice) == _key(value):
                return place
        known = ", ".join(repr(choice) for choice in self.choices)
        raise ConfigurationError(f"{self.name} must be one of {known}, not {value!r}")


Parameter = Number | Categorical


def uniform(name: str, low: float, high: float, *, step: float | None = None) -> Number:
    """A number, evenly between two bounds. Raises ConfigurationError for bounds that make no range."""
    return Number(name, low, high, step)


def log_uniform(name: str, low: float, high: float) -> Number:
    """A number whose logarithm lies evenly between two bounds. Raises ConfigurationError."""
    return Number(name, low, high, is_log=True)


def integer(name: str, low: int, high: int, *, step: int | None = None, log: bool = False) -> Number:
    """A whole number between two bounds. Raises ConfigurationError."""
    return Number(name, low, high, step, is_log=log, is_integer=True)


def categorical(name: str, choices: Sequence[Value]) -> Categorical:
    """One of a few values without order. Raises ConfigurationError."""
    return Categorical(name, tuple(choices))


@dataclass(frozen=True)
class ParameterSpace:
    """Parameters in the order in which they are chosen.

    Raises ConfigurationError for a name that comes twice, and for a condition on a parameter that does not come before
    it or cannot have the value.
    """

    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        known: dict[str, Parameter] = {}
        for parameter in self.parameters:
            if parameter.name in known:
                raise ConfigurationError(f"the space names {parameter.name} twice")
            if (condition := parameter.condition) is not None:
                if condition.parameter not in known:
                    raise ConfigurationError(
                        f"{parameter.name} depends on '{condition.parameter}', which is not a parameter before it"
                        f"{did_you_mean(condition.parameter, known)}"
                    )
                for value in condition.values:
                    known[condition.parameter].check(value)
            known[parameter.name] = parameter

    @property
    def size(self) -> int:
        """Numbers of an encoding."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def active(self, values: Mapping[str, Value]) -> list[Parameter]:
        """The parameters that apply, given the values of those before them."""
        found: list[Parameter] = []
        names: set[str] = set()
        for parameter in self.parameters:
            condition = parameter.condition
            if condition is not None and (
                condition.parameter not in names
                or not any(_key(values[condition.parameter]) == _key(value) for value in condition.values)
            ):
                continue
            if parameter.name not in values:
                raise ConfigurationError(f"the space's parameter {parameter.name} has no value")
            found.append(parameter)
            names.add(parameter.name)
        return found

    def check(self, values: Mapping[str, object]) -> dict[str, Value]:
        """The values of the parameters that apply, as the space has them; those that do not apply are left out.

        Raises ConfigurationError for a value out of range, one that is missing, and an unknown name.
        """
        for name in values:
            if name not in self.names:
                raise ConfigurationError(f"the space has no parameter '{name}'{did_you_mean(name, self.names)}")
        return {p.name: p.check(values[p.name]) for p in self.active(values)}  # type: ignore[arg-type]

    def encode(self, values: Mapping[str, Value]) -> np.ndarray:
        """float64[size]; numbers in [0, 1], choices one-hot, what does not apply neutral. Raises ConfigurationError."""
        applies = {parameter.name for parameter in self.active(values)}
        parts = [p.encode(values[p.name]) if p.name in applies else p.neutral for p in self.parameters]
        return np.concatenate(parts) if parts else np.zeros(0)

    def decode(self, vector: np.ndarray) -> dict[str, Value]:
        """The values that lie nearest to a vector of `size` numbers; those that do not apply are left out."""
        values: dict[str, Value] = {}
        start = 0
        for parameter in self.parameters:
            values[parameter.name] = parameter.decode(vector[start : start + parameter.size])
            start += parameter.size
        return {parameter.name: values[parameter.name] for parameter in self.active(values)}

    def draw(self, generator: np.random.Generator) -> dict[str, Value]:
        """Random values of the parameters that apply."""
        values = {parameter.name: parameter.draw(generator) for parameter in self.parameters}
        return {parameter.name: values[parameter.name] for parameter in self.active(values)}

    def near(
        self, values: Mapping[str, Value], generator: np.random.Generator, *, changed: float = 0.3, spread: float = 0.25
    ) -> dict[str, Value]:
        """Values around others: each parameter is changed with probability `changed`, at least one of them.

        spread: the standard deviation of a number's change, as a share of its range in the encoding.
        """
        count = len(self.parameters)
        chosen = generator.random(count) < changed
        if count:
            chosen[generator.integers(count)] = True
        found: dict[str, Value] = {}
        for parameter, is_chosen in zip(self.parameters, chosen, strict=True):
            before = values.get(parameter.name)
            if before is None:
                found[parameter.name] = parameter.draw(generator)
            else:
                found[parameter.name] = parameter.near(before, generator, spread) if is_chosen else before
        return {parameter.name: found[parameter.name] for parameter in self.active(found)}

    def suggest(self, trial: Any) -> dict[str, Value]:
        """Ask an Optuna trial for every parameter that applies, in order."""
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            condition = parameter.condition
            if condition is None or (
                condition.parameter in values
                and any(_key(values[condition.parameter]) == _key(value) for value in condition.values)
            ):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: each parameter under its name."""
        return {parameter.name: parameter.to_dict() for parameter in self.parameters}


def _condition_dict(condition: Condition | None) -> dict[str, Any]:
    return {} if condition is None else {"when": {condition.parameter: list(condition.values)}}


def _key(value: object) -> tuple[str, object]:
    """1, 1.0 and true are three choices, except that a whole float is the whole number."""
    if isinstance(value, bool):
        return "flag", value
    if isinstance(value, int | float):
        return "number", float(value)
    return "text", value
