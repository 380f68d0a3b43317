# SPDX-License-Identifier: Apache-2.0
"""Whether a plugin does what its kind promises: its methods, and what they do with small examples.

Runs in the probe's own process: it calls the plugin's code.
"""

from __future__ import annotations

import inspect
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError, DataError, OpenAutoGLMError
from open_autoglm.plugins.interfaces import attributes_of, methods_of
from open_autoglm.plugins.protocol_answer import ProtocolAnswer

_TEXTS: Final = ("", "plain words", "Ünïcode 北京 \U0001f600", "  <b>two</b>\n lines &amp; more  ")


def check_interface(kind: str, entry: Any) -> Any:
    """An object of the entry with the methods of its kind. Raises ConfigurationError that names what is missing."""
    if kind == "stage" and inspect.isfunction(entry):
        _check_arguments("the function", entry, 2)
        return None
    if not isinstance(entry, type):
        raise ConfigurationError(f"its entry is a {type(entry).__name__}; a {kind} is a class")
    # A stage is made with its settings, which nobody has here: its class is looked at.
    plugin: Any = entry if kind == "stage" else entry()
    for name, count in methods_of(kind).items():
        method = getattr(plugin, name, None)
        if not callable(method):
            raise ConfigurationError(f"it says that it is a {kind}, but has no method {name}")
        _check_arguments(f"its method {name}", method, count + (kind == "stage"))
    for name in attributes_of(kind):
        if not hasattr(plugin, name):
            raise ConfigurationError(f"it says that it is a {kind}, but has no attribute {name}")
    return None if kind == "stage" else plugin


def check_behaviour(kind: str, plugin: Any, check_config: Mapping[str, Any] | None) -> list[str]:
    """Try the plugin; returns what was tried. Raises ConfigurationError that says what came out wrong."""
    check = _CHECKS.get(kind)
    if check is None or plugin is None:
        return []
    if kind in ("source", "sink"):
        if check_config is None:
            return []
        plugin.connect(dict(check_config))
    return check(plugin)


def _check_arguments(what: str, function: Callable[..., Any], count: int) -> None:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError as error:
        raise ConfigurationError(f"{what} cannot be called with {count} arguments: {error}") from None


def _expect(fact: bool, message: str) -> None:
    if not fact:
        raise ConfigurationError(message)


def _check_cleaner(plugin: Any) -> list[str]:
    for text in _TEXTS:
        clean = plugin.clean(text)
        _expect(isinstance(clean, str), f"clean({text!r}) gave a {type(clean).__name__}, not a text")
        _expect(plugin.clean(clean) == clean, f"cleaning the clean text of {text!r} again changes it")
    return ["gives texts", "cleaning twice is cleaning once"]


def _check_reader(plugin: Any) -> list[str]:
    suffixes = plugin.suffixes
    good = not isinstance(suffixes, str) and all(isinstance(one, str) and one.startswith(".") for one in suffixes)
    _expect(good and len(suffixes) > 0, "suffixes must be texts that begin with a dot")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"empty{suffixes[0]}"
        path.write_bytes(b"")
        try:
            rows = list(plugin.read(path))
        except (DataError, ValueError):
            rows = []
    _expect(all(isinstance(row, Mapping) for row in rows), "read gave a row that is no mapping")
    return ["names suffixes", "reads an empty file or refuses it clearly"]


def _check_sampler(plugin: Any) -> list[str]:
    parameters = [
        {"name": "layers", "integer": [1, 4]},
        {"name": "rate", "log_uniform": [1e-4, 1e-2]},
        {"name": "kind", "categorical": ["a", "b"]},
    ]
    trials: list[dict[str, Any]] = []
    for seed in range(4):
        found = dict(plugin.propose(parameters, list(trials), seed))
        _expect(sorted(found) == ["kind", "layers", "rate"], f"propose gave values for {sorted(found)}")
        _expect(found["layers"] in (1, 2, 3, 4), f"propose gave {found['layers']!r} layers where 1 to 4 was asked for")
        _expect(1e-4 <= found["rate"] <= 1e-2, f"propose gave the rate {found['rate']!r}, which is out of bounds")
        _expect(found["kind"] in ("a", "b"), f"propose gave {found['kind']!r}, which is no choice")
        _expect(dict(plugin.propose(parameters, list(trials), seed)) == found, "the same arguments propose another")
        trials.append({"parameters": found, "value": 1.0 / (seed + 1)})
    return ["keeps to the bounds", "the same arguments propose the same"]


def _check_tokenizer(plugin: Any) -> list[str]:
    from open_autoglm.plugins.made_tokenizer import read_made_tokenizer

    texts = ["play the song yesterday", "book a table for two", "播放周杰伦的歌", "play it again"] * 5
    made = plugin.train(list(texts), 600)
    read_made_tokenizer(made, 600, texts)
    _expect(plugin.train(list(texts), 600) == made, "the same texts make another tokenizer")
    return ["keeps to the size", "gives every text back", "the same texts make the same tokenizer"]


def _check_metric(plugin: Any) -> list[str]:
    right, wrong = plugin.score(["a b", "c"], ["a b", "c"]), plugin.score(["x", "y"], ["a b", "c"])
    for score in (right, wrong):
        _expect(isinstance(score, int | float) and math.isfinite(score), f"score gave {score!r}, not a number")
    better = right > wrong if plugin.higher_is_better else right < wrong
    _expect(better, f"right answers score {right:g} and wrong ones {wrong:g}, which higher_is_better contradicts")
    return ["gives numbers", "right answers score better than wrong ones"]


def _check_quantizer(plugin: Any) -> list[str]:
    import numpy as np

    weights = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    for bits, group in ((4, 32), (8, 64)):
        parts = {name: np.asarray(values) for name, values in plugin.quantize(weights.copy(), bits, group).items()}
        _expect(sorted(parts) == ["codes", "scales", "zeros"], f"quantize gave {sorted(parts)}")
        codes, scales, zeros = parts["codes"], parts["scales"], parts["zeros"]
        groups = (8, 64 // group)
        _expect(codes.shape == weights.shape, f"codes have the shape {codes.shape}, not {weights.shape}")
        _expect(scales.shape == zeros.shape == groups, f"scales and zeros must be {groups}")
        _expect(codes.dtype == np.uint8 and codes.max() < 2**bits, f"codes must be uint8 and less than {2**bits}")
        back = (codes.reshape(8, -1, group) - zeros[..., None].astype(np.float32)) * scales[..., None]
        error = float(np.abs(back.reshape(8, 64) - weights).mean() / np.abs(weights).mean())
        _expect(math.isfinite(error) and error < 0.5, f"the weights came back {error:.0%} off at {bits} bits")
    return ["keeps the shapes", "comes back near the weights"]


def _check_source(plugin: Any) -> list[str]:
    records, cursor = plugin.fetch(None)
    rows = list(plugin.preprocess(records))
    _expect(all(isinstance(row, Mapping) for row in rows), "it gave a record that is no mapping")
    json.dumps([dict(row) for row in rows])
    json.dumps(cursor)
    again, after = plugin.fetch(cursor)
    _expect(not list(again) and after == cursor, "fetch with the cursor that it gave brings records again")
    return ["gives records and a cursor of JSON", "the cursor goes on after the last record"]


def _check_sink(plugin: Any) -> list[str]:
    records = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    written = plugin.write(records, "check/1")
    _expect(written == len(records), f"write of {len(records)} records says {written!r}")
    plugin.write(records, "check/1")
    return ["counts what it writes", "takes the same key again"]


class _FixedChat:
    """Stands for a served model that always says the same. num_asked: how often it was asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def __call__(self, body: Mapping[str, Any]) -> Any:
        """A completion, or its chunks, as the server makes them."""
        json.dumps(dict(body))
        self.num_asked += 1
        head = {"id": "chatcmpl-check", "created": 1, "model": self.models()[0]}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if body.get("stream") is True:
            return self._chunks({**head, "object": "chat.completion.chunk"}, usage)
        message = {"role": "assistant", "content": "an answer", "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def models(self) -> Sequence[str]:
        """One name."""
        return ["checked"]

    def _chunks(self, head: Mapping[str, Any], usage: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        for delta in ({"role": "assistant", "content": ""}, {"content": "an "}, {"content": "answer"}, {}):
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None if delta else "stop"}
            yield {**head, "choices": [choice]}
        yield {**head, "choices": [], "usage": usage}


def _check_protocol(plugin: Any) -> list[str]:
    chat, num_bytes = _FixedChat(), 0
    asked = {"model": "checked", "messages": [{"role": "user", "content": "a question"}]}
    bodies = {
        "text/plain": (b"", b"a question", b"\xff\xfe"),
        "application/json": (b"{}", b"[1", json.dumps(asked).encode(), json.dumps({**asked, "stream": True}).encode()),
    }
    requests = [("GET", "text/plain", b""), *(("POST", kind, body) for kind, some in bodies.items() for body in some)]
    for path in ("/", "/api/chat", "/v1/messages", "/no/such/place"):
        for method, kind, body in requests:
            headers = {"content-type": kind, "content-length": str(len(body))}
            request = {"method": method, "path": path, "query": {}, "headers": headers, "body": body}
            try:
                answer = ProtocolAnswer.of(plugin.answer(request, chat))
                num_bytes += sum(map(len, answer.pieces()))
            except OpenAutoGLMError:
                continue  # the server makes an answer of it
            except Exception as error:  # noqa: BLE001 - whatever a plugin raises is what is wrong with it
                what = f"{method} {path} with the body {body[:40]!r}"
                raise ConfigurationError(f"{what} raised {type(error).__name__}: {error}") from None
    _expect(num_bytes > 0, "every answer was empty")
    return ["gives answers of the right form", *(["asks the model"] if chat.num_asked else [])]


_CHECKS: Final[dict[str, Callable[[Any], list[str]]]] = {
    "cleaner": _check_cleaner,
    "reader": _check_reader,
    "sampler": _check_sampler,
    "tokenizer": _check_tokenizer,
    "metric": _check_metric,
    "quantizer": _check_quantizer,
    "source": _check_source,
    "sink": _check_sink,
    "protocol": _check_protocol,
}
