# SPDX-License-Identifier: Apache-2.0
"""How llama.cpp cuts texts into words before it merges bytes, by the names that a GGUF file can say.

A GGUF file cannot hold an expression of its own, only the name of one that llama.cpp knows. Which name fits a
tokenizer is found by comparing expressions, else by comparing token ids on many texts.
Source: the pre-tokenizer types of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Regex, Tokenizer, pre_tokenizers

from open_autoglm.errors import CheckpointError
from open_autoglm.export.sample_texts import sample_texts

_ENDINGS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS_SPELLED: Final = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GLM4: Final = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2: Final = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35: Final = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


@dataclass(frozen=True)
class PreTokenizer:
    """A name that llama.cpp knows. expressions: each cuts what the one before left. whole_words: a word that is a
    token stays whole, whatever its parts would merge to.
    """

    name: str
    expressions: tuple[str, ...]
    whole_words: bool = False


KNOWN: Final = (
    PreTokenizer("chatglm-bpe", (_GLM4,)),
    PreTokenizer("llama-bpe", (_GLM4,), whole_words=True),
    PreTokenizer("qwen35", (_QWEN35,)),
    PreTokenizer("qwen2", (_QWEN2,)),
    PreTokenizer("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    PreTokenizer("gpt-2", (_GPT2,)),
)


@dataclass(frozen=True)
class PreTokenizerChoice:
    """is_exact: the expressions are the same, so all ids are. Else `agreeing` of `texts` sample texts have the same.

    example: the shortest text that has other ids, None if all agree.
    """

    name: str
    is_exact: bool
    texts: int
    agreeing: int
    example: str | None = None


def choose_pre_tokenizer(tokenizer: Tokenizer, where: str, *, nearest: bool = False) -> PreTokenizerChoice:
    """The name under which llama.cpp gives the token ids that the tokenizer gives.

    where: the model's folder, for messages. nearest: if no name gives the same ids, take the one that comes closest.
    Raises CheckpointError for a tokenizer that is not a byte-level BPE, and, unless `nearest`, for one whose ids no
    known name gives, with a text that shows it.
    """
    said = json.loads(tokenizer.to_str())
    expressions = _check_kind(said, where)
    texts = [*sample_texts(), *_texts_of_added(said)]
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    keeps_words = bool(said["model"].get("ignore_merges"))
    exact = [item for item in KNOWN if _is_same(item.expressions, expressions) and item.whole_words == keeps_words]
    best: PreTokenizerChoice | None = None
    for candidate in [*exact, *(item for item in KNOWN if item not in exact)]:
        imitation = LlamaImitation(said, candidate)
        differing = [text for text, ids in zip(texts, wanted, strict=True) if imitation.encode(text) != ids]
        agreeing = len(texts) - len(differing)
        if best is None or agreeing > best.agreeing:
            example = min(differing, key=len, default=None)
            best = PreTokenizerChoice(candidate.name, candidate in exact, len(texts), agreeing, example)
        if not differing:
            break
    if best is None or (best.example is not None and not nearest):
        closest = "" if best is None else (
            f"; the nearest that it knows, {best.name}, gives the same token ids for {best.agreeing} of {best.texts} "
            f"sample texts, but not for {best.example!r}"
        )  # fmt: skip
        raise CheckpointError(
            f"{where}: llama.cpp cannot cut texts into words as this tokenizer does ({' then '.join(expressions)})"
            f"{closest}. Accept that with --tokenizer nearest, or export the weights alone, for programs that pass "
            "token ids, with --tokenizer none"
        )
    return best


class LlamaImitation:
    """Encodes texts as llama.cpp does with a vocabulary and a pre-tokenizer of that name.

    said: the tokenizer, as its JSON file says it.
    """

    def __init__(self, said: dict[str, Any], pre_tokenizer: PreTokenizer) -> None:
        # Tokens for ordinary text are found first, the longest first, each in what the longer ones left.
        added = [(item["content"], item["id"]) for item in said["added_tokens"] if not item["special"]]
        self._added: list[tuple[str, int]] = sorted(added, key=lambda item: (-len(item[0].encode()), item[1]))
        model = {**said["model"], "ignore_merges": pre_tokenizer.whole_words}
        plain = {**said, "added_tokens": [], "normalizer": None, "post_processor": None, "model": model}
        self._words = Tokenizer.from_str(json.dumps(plain))
        self._words.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(item), "isolated") for item in pre_tokenizer.expressions),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        parts: list[str | int] = [text]
        for token, token_id in self._added:
            if token in text:
                parts = [piece for part in parts for piece in _cut_out(part, token, token_id)]
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._words.encode(part, add_special_tokens=False).ids
        return ids


def _cut_out(part: str | int, token: str, token_id: int) -> Iterator[str | int]:
    if isinstance(part, int):
        yield part
        return
    for place, piece in enumerate(part.split(token)):
        if place:
            yield token_id
        if piece:
            yield piece


def _check_kind(said: dict[str, Any], where: str) -> tuple[str, ...]:
    """The expressions by which a byte-level BPE cuts. Raises CheckpointError for what llama.cpp has no words for."""
    model, added = said["model"], said["added_tokens"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        raise CheckpointError(
            f"{where}: the tokenizer is not a byte-level BPE, the only kind that is exported to GGUF; with "
            "--tokenizer none the weights are exported alone, for programs that pass token ids"
        )
    if said.get("normalizer"):
        kind = said["normalizer"].get("type")
        raise CheckpointError(
            f"{where}: the tokenizer changes texts ({kind}) before it cuts them, which GGUF cannot say"
        )
    for item in added:
        if item.get("lstrip") or item.get("rstrip") or item.get("single_word"):
            raise CheckpointError(
                f"{where}: the token {item['content']!r} takes the spaces around it, which GGUF cannot say"
            )
    steps = said.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    last: dict[str, Any] = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise CheckpointError(f"{where}: the tokenizer does not end in bytes as they are, which GGUF needs")
    expressions: list[str] = []
    for step in steps[:-1]:
        pattern = (step.get("pattern") or {}).get("Regex")
        if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert") or not pattern:
            kind = step.get("type")
            raise CheckpointError(f"{where}: the tokenizer cuts words by a step ({kind}) that GGUF has no name for")
        expressions.append(pattern)
    return (*expressions, _GPT2 + r"|\s+") if last.get("use_regex") else tuple(expressions)


def _is_same(known: Sequence[str], ours: Sequence[str]) -> bool:
    """Whether expressions are the same, or written differently where that is known to mean the same."""
    return [item.replace(_ENDINGS_SPELLED, _ENDINGS) for item in ours] == list(known)


def _texts_of_added(said: dict[str, Any]) -> list[str]:
    """Texts in which tokens for ordinary text stand beside each other and beside words."""
    tokens = [item["content"] for item in said["added_tokens"] if not item["special"]]
    pairs = zip(tokens, [*tokens[1:], *tokens[:1]], strict=True)
    return [f"{first}Neil Young{second}{first} 12" for first, second in pairs]
