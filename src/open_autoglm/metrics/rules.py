# SPDX-License-Identifier: Apache-2.0
"""A metric as rules in a file: which fields of an answer count, how much, and when two values are the same.

    metric: order_score
    rules:
      - {field: intent, compare: equal, weight: 2}
      - {field: slots.price, compare: number, tolerance: 0.01}
      - {field: slots.*, compare: ignore_case}

The score of an answer is the weight of the rules that hold by the weight of all that apply. A rule applies where the
reference or the answer has its field. A task whose answers are not JSON has one field, `answer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.metrics.answers import parse_json
from open_autoglm.metrics.texts import token_f1, tokens
from open_autoglm.spelling import did_you_mean
from open_autoglm.yaml_document import Place, YamlDocument, read_yaml

COMPARISONS: Final = ("equal", "ignore_case", "same_words", "number", "token_f1", "present")
"""equal: the same JSON value. ignore_case: texts but for case and outer spaces. same_words: texts but for case, spaces
and punctuation. number: numbers, also as text, within `tolerance` of each other. token_f1: by overlap, not all or
nothing. present: the answer has the field where the reference has it, and only there."""

_TEXT: Final = "answer"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_MOST_RULES: Final = 200


@dataclass(frozen=True)
class Rule:
    """field: keys with dots between; `*` stands for any key there. weight: what it counts. tolerance: of numbers."""

    field: str
    compare: str = "equal"
    weight: float = 1.0
    tolerance: float = 0.0

    def score(self, answer: Any, reference: Any) -> float:
        """How far a value fits, between 0 and 1. None stands for a field that is not there."""
        if self.compare == "present":
            return float((answer is None) == (reference is None))
        if answer is None or reference is None:
            return 0.0
        match self.compare:
            case "number":
                ours, theirs = _number(answer), _number(reference)
                return float(ours is not None and theirs is not None and abs(ours - theirs) <= self.tolerance)
            case "ignore_case":
                return float(str(answer).strip().casefold() == str(reference).strip().casefold())
            case "same_words":
                return float(tokens(str(answer)) == tokens(str(reference)))
            case "token_f1":
                return token_f1(str(answer), str(reference))
            case _:
                return float(type(answer) is type(reference) and answer == reference)


@dataclass(frozen=True)
class RuleBook:
    """The rules of one metric."""

    name: str
    rules: tuple[Rule, ...]

    def score(self, answer: str, reference: str) -> float:
        """Between 0 and 1; an answer that is not JSON where the reference is has no field."""
        theirs = parse_json(reference)
        if isinstance(theirs, dict):
            ours = parse_json(answer)
            ours = ours if isinstance(ours, dict) else {}
        else:
            ours, theirs = {_TEXT: answer.strip()}, {_TEXT: reference.strip()}
        reached = total = 0.0
        for rule in self.rules:
            for path in sorted({*_paths(ours, rule.field), *_paths(theirs, rule.field)}):
                total += rule.weight
                reached += rule.weight * rule.score(_at(ours, path), _at(theirs, path))
        return reached / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {"name": self.name, "rules": [asdict(rule) for rule in self.rules]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RuleBook:
        """The inverse of `to_dict`."""
        return cls(str(values["name"]), tuple(Rule(**rule) for rule in values["rules"]))


def read_rules(path: Path) -> RuleBook:
    """Read a file of rules. Raises ConfigurationError that names the file, the line and the field."""
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        raise document.fault((), "this must be 'metric:' and 'rules:'")
    for key in document.value:
        if key not in ("metric", "rules"):
            raise document.fault((key,), f"unknown key{did_you_mean(key, ('metric', 'rules'))}")
    name, listed = document.value.get("metric", path.stem), document.value.get("rules")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise document.fault(("metric",), "a metric's name is up to 64 letters, digits and '_', a letter first")
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MOST_RULES:
        raise document.fault(("rules",), f"this must be a list of 1 to {_MOST_RULES} rules")
    return RuleBook(name, tuple(_rule(document, ("rules", place), item) for place, item in enumerate(listed)))


def _rule(document: YamlDocument, place: Place, value: Any) -> Rule:
    if not isinstance(value, dict) or not isinstance(value.get("field"), str) or not value["field"]:
        raise document.fault(place, "a rule is a mapping with a 'field', such as {field: intent, compare: equal}")
    known = ("field", "compare", "weight", "tolerance")
    for key in value:
        if key not in known:
            raise document.fault((*place, key), f"unknown key{did_you_mean(key, known)}")
    compare = value.get("compare", "equal")
    if compare not in COMPARISONS:
        raise document.fault((*place, "compare"), f"unknown comparison{did_you_mean(str(compare), COMPARISONS)}")
    numbers: dict[str, float] = {}
    for key, usual in (("weight", 1.0), ("tolerance", 0.0)):
        number = value.get(key, usual)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise document.fault((*place, key), f"this must be a number of at least 0, not {number!r}")
        numbers[key] = float(number)
    if not numbers["weight"]:
        raise document.fault((*place, "weight"), "a rule that weighs nothing says nothing; leave it out")
    return Rule(value["field"], compare, numbers["weight"], numbers["tolerance"])


def _paths(value: Any, pattern: str) -> Sequence[tuple[str, ...]]:
    """The fields of a value that a pattern names."""
    found: list[tuple[tuple[str, ...], Any]] = [((), value)]
    for part in pattern.split("."):
        deeper: list[tuple[tuple[str, ...], Any]] = []
        for path, inner in found:
            if isinstance(inner, dict):
                names = list(inner) if part == "*" else [part] if part in inner else []
                deeper.extend(((*path, name), inner[name]) for name in names)
        found = deeper
    return [path for path, _ in found]


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        found = float(str(value).replace(",", ""))
    except ValueError:
        return None
    return found if math.isfinite(found) else None
