# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint folder, whichever file it is in; the folder's own code is never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from open_autoglm.chat.sentencepiece_file import read_sentencepiece
from open_autoglm.chat.tiktoken_file import GLM4_TOKENS, is_tiktoken_file, read_tiktoken
from open_autoglm.errors import CheckpointError, StorageError
from open_autoglm.storage import read_json

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model")
_NUL: Final = "\\u0000"
"""How JSON writes it: it has no other way."""


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a file that `load_tokenizer` reads."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: Path) -> Tokenizer:
    """`tokenizer.json`, else `tokenizer.model`, which is a SentencePiece or a tiktoken file.

    The control tokens are those of `tokenizer_config.json`, at the ids that it gives them; a tiktoken file without
    one gets GLM-4's. Raises CheckpointError when there is none, or it cannot be read.
    """
    path = folder / TOKENIZER_FILES[0]
    if path.is_file():
        return read_tokenizer_json(path)
    path = folder / TOKENIZER_FILES[1]
    if not path.is_file():
        raise CheckpointError(f"{folder} has none of {', '.join(TOKENIZER_FILES)}; copy the tokenizer's file there")
    named = _named_tokens(folder)
    try:
        is_tiktoken = is_tiktoken_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    tokenizer = read_tiktoken(path, () if named else GLM4_TOKENS) if is_tiktoken else read_sentencepiece(path)
    _add_named(tokenizer, named, folder)
    return tokenizer


def read_tokenizer_json(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` of any origin. Raises CheckpointError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        if _has_nul(text):
            raise CheckpointError(f"{path} has a NUL character in it, which is in no GLM's tokenizer; it is not one")
        return Tokenizer.from_str(text)
    except CheckpointError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the library raises bare Exception, and panics that are not even that
        reason = "".join(character if character.isprintable() else " " for character in str(error)[:300])
        raise CheckpointError(f"{path} is not a tokenizer that can be read ({reason})") from None


def _has_nul(text: str) -> bool:
    """Whether any string in a JSON text has a NUL: an error message with one ends the whole process in the library.

    Raises ValueError or RecursionError for what is not JSON.
    """
    if _NUL not in text:
        return False  # nearly always; a large vocabulary is not parsed twice
    waiting: list[Any] = [json.loads(text)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and "\0" in value:
            return True
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
    return False


def _named_tokens(folder: Path) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: id -> token."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        said: Any = read_json(file).get("added_tokens_decoder") or {}
        return {
            int(token_id): AddedToken(
                str(token["content"]), normalized=False, special=bool(token.get("special", False))
            )
            for token_id, token in sorted(said.items(), key=lambda item: int(item[0]))
        }
    except (StorageError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its added tokens cannot be read ({error})") from None


def _add_named(tokenizer: Tokenizer, named: dict[int, AddedToken], folder: Path) -> None:
    for token_id, token in named.items():
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        got = tokenizer.token_to_id(token.content)
        if got != token_id:
            raise CheckpointError(
                f"{folder}: tokenizer_config.json gives '{token.content}' the id {token_id}, but the tokenizer's file "
                f"has room for it at {got} only; the two files do not belong together"
            )
