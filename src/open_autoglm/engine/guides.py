# SPDX-License-Identifier: Apache-2.0
"""Guided decoding: what an answer must look like, compiled into masks over the vocabulary by llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark
from tokenizers import Tokenizer

from open_autoglm.engine.answer_ending import EndingTokens, JsonEnding, JsonForm
from open_autoglm.engine.copied_strings import CopiedStrings, CopiedWords, TokenBytes
from open_autoglm.engine.schema_patterns import with_ecma_patterns
from open_autoglm.engine.task_grammar import TaskGrammar, substring_grammar
from open_autoglm.errors import EngineError, RequestError
from open_autoglm.task import Task

GuideKind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "substring"]

MAX_SPECIFICATION: Final[dict[str, int]] = {
    "json_schema": 64 * 1024,
    "choice": 64 * 1024,
    "regex": 16 * 1024,
    "grammar": 16 * 1024,
    "substring": 100_000,
}
"""Characters of what a request may bring; the worst of each compiles in a second or two."""

MAX_SCHEMA_STRING: Final = 8 * 1024
"""Characters of one string in a schema; `pattern`s cost the square of their length."""

MAX_CHOICES: Final = 2000
_MAX_DEPTH: Final = 100
_CACHED: Final = 64
_MOST_FOLLOWED: Final = 32_768
"""Tokens of a vocabulary whose bytes are held as a tree."""
_DEEP_STACK: Final = 64 * 1024 * 1024
_STACK_SIZE: Final = threading.Lock()  # the size of new threads' stacks is a setting of the process

JSON_LAYOUT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is laid out, in the words of llguidance."""

# Where only one text can follow, llguidance would also force how it is cut into tokens, and not as the model learnt it.
FREE_TOKENS: Final = '%llguidance {"no_forcing": true}\n'


@dataclass(frozen=True)
class GuideSpec:
    """A form of answer that a request asks for.

    parameter: the request's field, for error messages.
    text: of `json_schema` the schema in JSON, of `choice` a JSON list of strings, of `regex` the expression, of
    `grammar` a grammar in Lark or GBNF, of `substring` the text whose runs of words are allowed, of `json_object`
    nothing.
    """

    kind: GuideKind
    text: str = ""
    parameter: str | None = None

    @classmethod
    def of(cls, kind: GuideKind, value: Any = None, parameter: str | None = None) -> GuideSpec:
        """Check a value that came from outside. Raises RequestError when it is too large, deep or of a wrong type."""
        if kind == "json_object":
            return cls(kind, "", parameter)
        if kind == "json_schema":
            if not isinstance(value, Mapping):
                raise RequestError("a JSON schema must be an object", parameter)
            value = dict(value)
            _check_schema(value, parameter)
            text = json.dumps(value, ensure_ascii=False)
        elif kind == "choice":
            valid = isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value)
            if not valid or not 1 <= len(value) <= MAX_CHOICES:
                raise RequestError(f"a choice must be a list of 1 to {MAX_CHOICES} strings, none empty", parameter)
            text = json.dumps(list(value), ensure_ascii=False)
        else:
            if not isinstance(value, str) or not value.strip():
                raise RequestError(f"a {kind} must be a string that is not empty", parameter)
            text = value
        if len(text) > MAX_SPECIFICATION[kind]:
            raise RequestError(
                f"the {kind.replace('_', ' ')} has {len(text)} characters, at most {MAX_SPECIFICATION[kind]} are taken",
                parameter,
            )
        return cls(kind, text, parameter)

    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answers, where the form is one."""
        match self.kind:
            case "json_schema":
                return json.loads(self.text)
            case "json_object":
                return {"type": "object"}
            case _:
                return None

    def to_grammar(self) -> str:
        """The Lark grammar that llguidance compiles."""
        match self.kind:
            case "json_schema":
                return _schema_grammar(json.loads(self.text))
            case "json_object":
                return _schema_grammar({"type": "object"})
            case "regex":
                return _regex_grammar(self.text)
            case "choice":
                options = [json.dumps(option, ensure_ascii=False) for option in json.loads(self.text)]
                return FREE_TOKENS + "start: " + "\n  | ".join(options)
            case "grammar":
                return FREE_TOKENS + (_from_gbnf(self.text, self.parameter) if "::=" in self.text else self.text)
            case "substring":
                return FREE_TOKENS + substring_grammar(self.text)


class Guide:
    """The state of one answer in its grammar. Used by one request, in one thread at a time.

    copied: follows the strings that are copied from the input, where the grammar takes any.
    ending: keeps room for the end of a JSON answer.
    """

    def __init__(
        self, matcher: LLMatcher, copied: CopiedStrings | None = None, ending: JsonEnding | None = None
    ) -> None:
        self._matcher, self._copied, self._ending = matcher, copied, ending

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete and nothing can follow, or nothing may."""
        return self._matcher.is_stopped() or (self._ending is not None and self._ending.has_ended)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, if it were to end here."""
        return self._matcher.is_accepting()

    @property
    def is_shortened(self) -> bool:
        """Whether the answer was brought to its end because no more tokens were left."""
        return self._ending is not None and self._ending.is_followed

    def copy(self) -> Guide:
        """A guide in the same state, for another answer to the same request."""
        copied, ending = self._copied, self._ending
        return Guide(
            self._matcher.deep_copy(),
            None if copied is None else copied.copy(),
            None if ending is None else ending.copy(),
        )

    def fit(self, token_id: int, left: int) -> int:
        """The token to take in place of one that the mask allowed, so that JSON comes to its end before room does.

        left: how many tokens may come behind this one. Mostly it is the same token.
        """
        return token_id if self._ending is None else self._ending.fit(self, token_id, left)

    def takes(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens may come next."""
        if self._matcher.validate_tokens(list(token_ids)) < len(token_ids):
            return False
        return self._copied is None or self._copied.takes(token_ids)

    def is_completed_by(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens may come next, and the answer is whole with them."""
        if not self.takes(token_ids):
            return False
        matcher = self._matcher.deep_copy()
        return matcher.consume_tokens(list(token_ids)) and matcher.is_accepting()

    def fill_mask(self, mask: np.ndarray, row: int) -> None:
        """Write the allowed tokens, one bit each, into `mask[row]`; mask: int32[rows, ceil(vocab_size / 32)].

        Raises RequestError when the grammar has become too complex to follow, or leads nowhere.
        """
        llguidance.numpy.fill_next_token_bitmask(self._matcher, mask, row)
        if self._matcher.is_error():
            raise RequestError(f"the answer can no longer be guided: {_first_line(self._matcher.get_error())}")
        if self._copied is not None:
            self._copied.restrict(mask[row])

    def accept(self, token_id: int) -> None:
        """Go on by a token that the mask allowed. Raises RequestError if it does not fit."""
        if not self._matcher.consume_token(token_id):
            raise RequestError(f"the answer can no longer be guided: {_first_line(self._matcher.get_error())}")
        if self._copied is not None:
            self._copied.advance(token_id)
        if self._ending is not None:
            self._ending.advance(token_id)


@dataclass(frozen=True)
class _Compiled:
    """What guides are made of. form: of the answers, where they are JSON."""

    matcher: LLMatcher
    form: JsonForm | None = None

    def guide(self, copied: CopiedStrings | None = None) -> Guide:
        """A guide at the begin of an answer."""
        return Guide(self.matcher.deep_copy(), copied, None if self.form is None else JsonEnding(self.form))


@dataclass
class _KnownTask:
    """The task that was asked for last. of_any: its grammar in which copied strings are any text."""

    task: Task
    grammar: TaskGrammar
    form: JsonForm | None
    of_any: _Compiled | None = None


class GuideCompiler:
    """Compiles guides for one tokenizer, within bounds on time and size, and keeps the latest ones.

    Safe to call from several threads; compiling lets go of the interpreter lock.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_token_ids: Sequence[int]) -> None:
        self._source = tokenizer
        self._vocab_size, self._stop_token_ids = vocab_size, tuple(stop_token_ids)
        self._tokenizer = self._load(tokenizer.to_str())
        self._tagged: LLTokenizer | None = None
        self._task: _KnownTask | None = None
        self._token_bytes: TokenBytes | None = None
        self._ending_tokens: EndingTokens | None = None
        self._limits = LLParserLimits(verbose_errors=False)
        self._cache: OrderedDict[str, _Compiled] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> LLTokenizer:
        """The tokenizer as llguidance sees it: tokens as bytes."""
        return self._tokenizer

    def compile(self, spec: GuideSpec) -> Guide:
        """Compile a request's guide. Raises RequestError, naming the field, when it is invalid or too complex."""
        key = f"{spec.kind}\0{spec.text}"
        compiled = self._cached(key)
        if compiled is None:
            matcher = self._compile(spec.to_grammar(), f"invalid {spec.kind.replace('_', ' ')}", spec.parameter)
            compiled = self._keep(key, _Compiled(matcher, self._form(spec.schema())))
        return compiled.guide()

    def compile_task(self, task: Task, input_text: str) -> Guide:
        """Compile the guide of a task for one input. Raises ConfigurationError or RequestError."""
        known = self._task
        if known is None or known.task is not task:
            form = None if task.labels else self._form(task.answer_schema)
            known = self._task = _KnownTask(task, TaskGrammar(task), form)
        grammar = known.grammar
        words = grammar.words(input_text)
        if words and grammar.shape is not None and self._vocab_size <= _MOST_FOLLOWED:
            if known.of_any is None:
                complaint = "the task's answer schema cannot be guided"
                matcher = self._compile(FREE_TOKENS + grammar.text_of_any(), complaint, None)
                known.of_any = _Compiled(matcher, known.form)
            return known.of_any.guide(
                CopiedStrings(self._bytes(), grammar.shape, CopiedWords(words), in_order=grammar.in_order)
            )
        if grammar.depends_on_input:
            text = FREE_TOKENS + grammar.text(input_text)
            return _Compiled(
                self._compile(text, "the task's guide cannot take this input", "messages"), known.form
            ).guide()
        key = "task\0" + json.dumps(task.to_dict(), sort_keys=True)
        compiled = self._cached(key)
        if compiled is None:
            matcher = self._compile(FREE_TOKENS + grammar.text(""), "the task's answer schema cannot be guided", None)
            compiled = self._keep(key, _Compiled(matcher, known.form))
        return compiled.guide()

    def _form(self, schema: Mapping[str, Any] | None) -> JsonForm | None:
        if schema is None:
            return None
        if self._ending_tokens is None:
            self._ending_tokens = EndingTokens(self._texts(), self._tokenizer.tokenize_bytes)
        return JsonForm(self._ending_tokens, schema)

    def _bytes(self) -> TokenBytes:
        if self._token_bytes is None:
            self._token_bytes = TokenBytes(self._texts())
        return self._token_bytes

    def _texts(self) -> list[bytes]:
        """The bytes of each token; control tokens have none."""
        tokens = self._tokenizer
        control = frozenset(self._stop_token_ids)
        return [
            b"" if one in control or tokens.is_special_token(one) else tokens.decode_bytes([one])
            for one in range(tokens.vocab_size)
        ]

    def know_tags(self, tags: Collection[str]) -> None:
        """Make ready for `compile_calls`. tags: tokens that no text is made of, as no text is made of control tokens.

        Reads the tokenizer, which no other thread may use meanwhile.
        """
        if self._tagged is None:
            values = json.loads(self._source.to_str())
            for token in values.get("added_tokens", ()):
                token["special"] = token["special"] or token["content"] in tags
            self._tagged = self._load(json.dumps(values, ensure_ascii=False))

    def compile_calls(self, grammar: str) -> Guide:
        """Compile a grammar of calls (`call_grammar`), after `know_tags`.

        Raises RequestError when a tool's schema is invalid or too complex.
        """
        key = "calls\0" + grammar
        compiled = self._cached(key)
        if compiled is None:
            matcher = self._compile(grammar, "the schema of a tool cannot be followed", "tools", self._tagged)
            compiled = self._keep(key, _Compiled(matcher))
        return compiled.guide()

    def _load(self, text: str) -> LLTokenizer:
        try:
            return LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._stop_token_ids) or None)
        except Exception as error:  # noqa: BLE001 - the library raises what its Rust side panics with
            raise EngineError(f"this tokenizer cannot guide decoding: {_first_line(str(error))}") from None

    def _compile(
        self, grammar: str, complaint: str, parameter: str | None, tokenizer: LLTokenizer | None = None
    ) -> LLMatcher:
        using = tokenizer or self._tokenizer
        matcher = _with_deep_stack(lambda: LLMatcher(using, grammar, log_level=0, limits=self._limits))
        if matcher.is_error():
            raise RequestError(f"{complaint}: {_first_line(matcher.get_error())}", parameter)
        return matcher

    def _cached(self, key: str) -> _Compiled | None:
        with self._lock:
            compiled = self._cache.get(key)
            if compiled is not None:
                self._cache.move_to_end(key)
            return compiled

    def _keep(self, key: str, compiled: _Compiled) -> _Compiled:
        with self._lock:
            self._cache[key] = compiled
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return compiled


def _schema_grammar(schema: dict[str, Any]) -> str:
    schema = with_ecma_patterns(schema)
    return f"{FREE_TOKENS}start: %json {json.dumps({**schema, 'x-guidance': JSON_LAYOUT}, ensure_ascii=False)}"


def _regex_grammar(expression: str) -> str:
    wrapped = json.loads(LLMatcher.grammar_from_regex(expression))
    return FREE_TOKENS + wrapped["grammars"][0]["lark_grammar"]


def _from_gbnf(text: str, parameter: str | None) -> str:
    """llama.cpp's grammar notation in Lark's."""
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # noqa: BLE001 - the library raises what it meets, recursion's end among it
        raise RequestError(f"invalid grammar: {_first_line(str(error))}", parameter) from None


def _check_schema(value: Any, parameter: str | None) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        if any(isinstance(item, str) and len(item) > MAX_SCHEMA_STRING for item in level):
            raise RequestError(f"a string in the JSON schema has more than {MAX_SCHEMA_STRING} characters", parameter)
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise RequestError(f"the JSON schema is nested more than {_MAX_DEPTH} deep", parameter)


def _with_deep_stack(work: Callable[[], LLMatcher]) -> LLMatcher:
    """Run `work` in a thread with 64 MiB of stack.

    llguidance compiles rules by recursion: a chain of 2,500 rules overflows the usual 8 MiB, which would end the
    process. Nothing that passes the size limits comes near 64 MiB; matching does not recurse.
    """
    results: list[LLMatcher | BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            results.append(error)

    thread = threading.Thread(target=run, name="open-autoglm-guide")
    with _STACK_SIZE:
        usual = threading.stack_size(_DEEP_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 300 else line[:297] + "..."
