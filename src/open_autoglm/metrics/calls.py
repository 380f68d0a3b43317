# SPDX-License-Identifier: Apache-2.0
"""How well tools are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from open_autoglm.metrics.samples import Samples, mean, share

Calls = Sequence[tuple[str, Mapping[str, Any]]]
"""What one turn calls: names and arguments."""


def score_calls(answers: Sequence[Calls | None], references: Sequence[Calls]) -> dict[str, float]:
    """The values of `call_samples`. Raises ValueError when the counts differ or are zero."""
    return {name: samples.value for name, samples in call_samples(answers, references).items()}


def call_samples(answers: Sequence[Calls | None], references: Sequence[Calls]) -> dict[str, Samples]:
    """How well tools are called, over the assistant's turns: what was called there, and what should have been.

    None stands for an answer that tried to call and could not be read. Calls are the same when name and arguments are,
    as JSON: keys in any order, 1 as good as 1.0, texts and numbers apart; parallel calls in any order.
    call_match: of the turns that should call, the share whose calls are all right. call_names: as much, of the names
    alone. call_decision: the share of all turns that call if and only if they should. call_parse_rate: of the answers
    that try to call, the share that can be read. A share of nothing is 1.
    Raises ValueError when the counts differ or are zero.
    """
    if len(answers) != len(references) or not references:
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    pairs = list(zip(answers, references, strict=True))
    return {
        "call_match": share(
            [(bool(wanted) and _key(answer or ()) == _key(wanted), bool(wanted)) for answer, wanted in pairs]
        ),
        "call_names": share(
            [(bool(wanted) and _names(answer or ()) == _names(wanted), bool(wanted)) for answer, wanted in pairs]
        ),
        "call_decision": mean([(answer is None or bool(answer)) == bool(wanted) for answer, wanted in pairs]),
        "call_parse_rate": share([(bool(answer), answer is None or bool(answer)) for answer in answers]),
    }


def _names(calls: Calls) -> list[str]:
    return sorted(name for name, _ in calls)


def _key(calls: Calls) -> list[str]:
    return sorted(json.dumps([name, _plain_numbers(values)], sort_keys=True) for name, values in calls)


def _plain_numbers(value: Any) -> Any:
    """JSON has one kind of number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(inner) for inner in value]
    return value
