# SPDX-License-Identifier: Apache-2.0
"""What the server's process checks by itself, so that the engine need not be asked, is what the engine would check."""

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.engine.request import SamplingParams
from open_autoglm.errors import RequestError
from open_autoglm.serve.json_body import MAX_DEPTH, json_object
from open_autoglm.serve.routes.chat_request import ChatCompletionRequest

_EDGES = (-(2**63) - 1, -(2**63), -3, -2.5, -2, -1, 0, 0.005, 0.01, 0.5, 1, 1.5, 2, 2.01, 10, 10.5, 20, 21, 100, 101)
_VALUES = st.one_of(
    st.sampled_from((*_EDGES, 2**31 - 1, 2**31, 2**63 - 1, 2**63, True, "1", math.inf, math.nan)),
    st.lists(st.one_of(st.sampled_from((*_EDGES, 2**31)), st.text(max_size=300)), max_size=18),
    st.dictionaries(st.one_of(st.sampled_from(("0", "7", "-1", "x", str(2**31))), st.text(max_size=3)), st.integers()),
    st.text(max_size=300),
)
_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "logit_bias", "max_tokens", "top_logprobs"),
)


@given(st.dictionaries(st.sampled_from(_FIELDS), _VALUES, min_size=1, max_size=4))
def test_no_order_leaves_the_server_that_the_engine_refuses_for_its_sampling(values: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "logprobs": "top_logprobs" in values, **values}
    with contextlib.suppress(RequestError):
        SamplingParams(**ChatCompletionRequest.parse(body).order(1000).params)
        return
    with pytest.raises(RequestError):  # it was the server's own word, before any order was made
        ChatCompletionRequest.parse(body).order(1000)


@pytest.mark.parametrize("depth", [1, MAX_DEPTH - 1, MAX_DEPTH, 2 * MAX_DEPTH])
@pytest.mark.parametrize("within", ["", "[{" * 200])
def test_depth_is_counted_and_brackets_in_texts_are_not(depth: int, within: str) -> None:
    value: Any = within
    for _ in range(depth - 1):
        value = [value]
    body = json.dumps({"a": value}).encode()
    if depth >= MAX_DEPTH:
        with pytest.raises(RequestError, match=f"nested more than {MAX_DEPTH} deep"):
            json_object(body)
    else:
        assert json_object(body) == {"a": value}
