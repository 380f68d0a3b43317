# SPDX-License-Identifier: Apache-2.0
"""How well tools are called, against values worked out by hand."""

import pytest

from open_autoglm.metrics import score_calls


def test_calls_are_compared_as_json() -> None:
    one = [("f", {"a": 1, "b": {"c": [1.0, True], "d": "1"}})]
    same = [("f", {"b": {"d": "1", "c": [1, True]}, "a": 1.0})]
    assert score_calls([same], [one])["call_match"] == 1.0
    for other in ({"a": 1}, {"a": "1", "b": {"c": [1, True], "d": "1"}}, {"a": 1, "b": {"c": [1, 1], "d": "1"}},
                  {"a": 1, "b": {"c": [True, 1], "d": "1"}}):  # fmt: skip
        scores = score_calls([[("f", other)]], [one])
        assert (scores["call_match"], scores["call_names"]) == (0.0, 1.0)
    two = [("f", {}), ("g", {})]
    assert score_calls([two[::-1]], [two])["call_match"] == 1.0
    assert score_calls([two[:1]], [two])["call_match"] == 0.0
    assert score_calls([[("f", {}), ("f", {})]], [two])["call_names"] == 0.0


def test_turns_without_calls_count_for_the_decision_alone() -> None:
    call = [("f", {})]
    answers = [call, None, [], call, None, []]
    references = [call, call, call, [], [], []]
    scores = score_calls(answers, references)
    assert scores == {
        "call_match": pytest.approx(1 / 3),
        "call_names": pytest.approx(1 / 3),
        "call_decision": pytest.approx(3 / 6),
        "call_parse_rate": pytest.approx(2 / 4),
    }
    assert score_calls([[]], [[]]) == dict.fromkeys(scores, 1.0)
    with pytest.raises(ValueError, match="0 references"):
        score_calls([], [])
