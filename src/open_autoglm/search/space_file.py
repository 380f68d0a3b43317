# SPDX-License-Identifier: Apache-2.0
"""`--space FILE.yaml`: parts of the search space as the user wants them, checked with file, line and field.

    parameters:
      learning_rate: {log_uniform: [0.001, 0.004], default: 0.002}
      layers: {integer: [2, 4]}
      dropout: {uniform: [0.0, 0.2], step: 0.05}
      optimizer: {categorical: [adamw, muon]}
      warmup_steps: {integer: [20, 120], step: 20, when: {optimizer: adamw}}
      weight_decay: 0.1          # not searched

What the file does not name stays as `open-autoglm build --print-space` shows it, which prints this very form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.search.parameters import Categorical, Condition, Number, Parameter, Value
from open_autoglm.search.space import SearchSpace, override
from open_autoglm.spelling import did_you_mean
from open_autoglm.yaml_document import Place, YamlDocument, read_yaml

_KINDS: Final = ("uniform", "log_uniform", "integer", "categorical")
_KEYS: Final = (*_KINDS, "step", "log", "when", "default")
_TOP: Final = "parameters"


def apply_space_file(space: SearchSpace, path: Path) -> SearchSpace:
    """The space with what a file says of it. Raises ConfigurationError that names the file, the line and the field."""
    document = read_yaml(path)
    if not isinstance(document.value, dict) or set(document.value) != {_TOP}:
        raise document.fault((), f"this must be '{_TOP}:' with a parameter under each name")
    described = document.value[_TOP]
    if not isinstance(described, dict):
        raise document.fault((_TOP,), "this must be names, each with a range or a value")
    for name, value in described.items():
        place: Place = (_TOP, name)
        parameters: tuple[Parameter, ...] = ()
        defaults: dict[str, Value] = {}
        fixed: dict[str, Value] = {}
        try:
            if not isinstance(value, dict):
                fixed[name] = _scalar(value)
            else:
                parameters = (_parameter(document, name, value),)
                if "default" in value:
                    defaults[name] = _scalar(value["default"])
            space = override(space, parameters, defaults, fixed)
        except ConfigurationError as error:
            if str(error).startswith(f"{path}, line"):
                raise
            raise document.fault(place, str(error).removeprefix(f"{name}: ")) from None
    return space


def _parameter(document: YamlDocument, name: str, value: Mapping[str, Any]) -> Parameter:
    place: Place = (_TOP, name)
    for key in value:
        if key not in _KEYS:
            raise document.fault((*place, key), f"unknown key{did_you_mean(key, _KEYS)}")
    kinds = [kind for kind in _KINDS if kind in value]
    if len(kinds) != 1:
        raise document.fault(place, f"give exactly one of {', '.join(_KINDS)}")
    kind = kinds[0]
    listed = value[kind]
    condition = _condition(document, (*place, "when"), value["when"]) if "when" in value else None
    if kind == "categorical":
        if not isinstance(listed, list) or not listed:
            raise document.fault((*place, kind), "this must be a list of choices")
        for key in ("step", "log"):
            if key in value:
                raise document.fault((*place, key), "choices have no such thing")
        return Categorical(name, tuple(_scalar(choice) for choice in listed), condition)
    if not isinstance(listed, list) or len(listed) != 2:
        raise document.fault((*place, kind), "this must be a list of two numbers, the lower bound first")
    low, high = (_number(document, (*place, kind, index), bound) for index, bound in enumerate(listed))
    step = _number(document, (*place, "step"), value["step"]) if "step" in value else None
    is_log = kind == "log_uniform"
    if "log" in value:
        if kind != "integer" or not isinstance(value["log"], bool):
            raise document.fault((*place, "log"), "only an integer takes this, as true or false")
        is_log = value["log"]
    return Number(name, low, high, step, is_log=is_log, is_integer=kind == "integer", condition=condition)


def _condition(document: YamlDocument, place: Place, value: Any) -> Condition:
    if not isinstance(value, dict) or len(value) != 1:
        raise document.fault(place, "this must be one parameter and its value, or a list of values")
    ((name, wanted),) = value.items()
    values = wanted if isinstance(wanted, list) else [wanted]
    return Condition(name, tuple(_scalar(item) for item in values))


def _number(document: YamlDocument, place: Place, value: Any) -> float:
    found = _scalar(value) if not isinstance(value, list | dict | None) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise document.fault(place, f"{value!r} is not a number")
    return found


def _scalar(value: Any) -> Value:
    """A scalar; `1e-3` is a number although YAML 1.1 reads it as text."""
    if isinstance(value, str):
        try:
            return float(value) if any(character.isdigit() for character in value) else value
        except ValueError:
            return value
    if not isinstance(value, int | float):
        raise ConfigurationError(f"{value!r} is neither text nor a number nor true or false")
    return value
