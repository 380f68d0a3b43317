# SPDX-License-Identifier: Apache-2.0
"""A tokenizer as the fields of a GGUF file: tokens, their kinds, merges, the ends of an answer, the chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from open_autoglm.chat.template import BEGIN_MASK, STOP_TOKENS
from open_autoglm.errors import CheckpointError
from open_autoglm.export.gguf_pre_tokenizers import PreTokenizerChoice, choose_pre_tokenizer
from open_autoglm.export.source import Source

if TYPE_CHECKING:
    from gguf import GGUFWriter

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Kinds of token, as ggml counts them."""

_END_FIELDS: Final = ("add_eos_token_id", "add_eot_token_id", "add_eom_token_id")
"""The ends of an answer that a GGUF file can name: of the text, of the turn, of the message before a tool's."""


@dataclass(frozen=True)
class GgufVocabulary:
    """tokens, kinds: by token id, one for each row of the embedding. merges: `left right`, the first merged first.

    choice: by which name llama.cpp cuts texts into words, and how sure that is. notes: what a user should know.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    choice: PreTokenizerChoice
    ends: tuple[int, ...]
    pad: int | None
    begin: int | None
    template: str | None
    notes: list[str] = field(default_factory=list)

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the fields. Nothing is put before a text: the chat template says what begins a conversation."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.choice.name)
        writer.add_token_list([token.encode() for token in self.tokens])
        writer.add_token_types(self.kinds)
        writer.add_token_merges([merge.encode() for merge in self.merges])
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        for name, token_id in zip(_END_FIELDS, self.ends, strict=False):
            getattr(writer, name)(token_id)
        if self.begin is not None:
            writer.add_bos_token_id(self.begin)
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(source: Source, *, nearest: bool = False) -> GgufVocabulary:
    """The vocabulary of a model for GGUF. nearest: as `choose_pre_tokenizer` takes it.

    Raises CheckpointError for a model without a tokenizer and for a tokenizer that llama.cpp would read otherwise.
    """
    tokenizer, config, where = source.tokenizer, source.config, str(source.folder)
    if tokenizer is None:
        raise CheckpointError(
            f"{where} has no tokenizer; copy its tokenizer.json there, or export the weights alone with "
            "--tokenizer none"
        )
    choice = choose_pre_tokenizer(tokenizer, where, nearest=nearest)
    said = json.loads(tokenizer.to_str())
    known = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(known.values())
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has the token {largest}, the model's embedding has {config.vocab_size} rows only; "
            "they do not belong together"
        )
    tokens = [f"[PAD{token_id}]" for token_id in range(config.vocab_size)]
    kinds = [_UNUSED] * config.vocab_size
    for token, token_id in known.items():
        tokens[token_id], kinds[token_id] = token, _NORMAL
    for item in said["added_tokens"]:
        kinds[item["id"]] = _CONTROL if item["special"] else _USER_DEFINED
    merges = [item if isinstance(item, str) else " ".join(item) for item in said["model"]["merges"]]
    ends = _ends(source, known)
    notes: list[str] = []
    if len(ends) > len(_END_FIELDS):
        left = ", ".join(tokens[token_id] for token_id in ends[len(_END_FIELDS) :])
        notes.append(f"GGUF has no field for more than {len(_END_FIELDS)} ends of an answer; it does not say: {left}")
    if source.template is None:
        notes.append("the model has no chat template, so the file has none")
    if not choice.is_exact:
        if choice.example is None:
            notes.append(
                f"llama.cpp has no name for how this tokenizer cuts texts into words; with {choice.name} all "
                f"{choice.texts} sample texts have the same token ids, but a rare text may have others"
            )
        else:
            notes.append(
                f"with {choice.name}, {choice.agreeing} of {choice.texts} sample texts have the same token ids; "
                f"others than the model was trained on has, for one, {choice.example!r}"
            )
    return GgufVocabulary(
        tokens, kinds, merges, choice, ends, config.pad_token_id, known.get(BEGIN_MASK), source.template, notes
    )


def _ends(source: Source, known: dict[str, int]) -> tuple[int, ...]:
    """What ends an answer: the tokens that GLM calls so in the order of the fields, then others."""
    usual = [known[token] for token in STOP_TOKENS if token in known]
    named = source.config.eos_token_ids or tuple(usual)
    return (*(token_id for token_id in usual if token_id in named), *(item for item in named if item not in usual))
