# SPDX-License-Identifier: Apache-2.0
"""Step 1: files -> examples, task, report, tokenizer and tokens."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from open_autoglm.build_steps.workspace import optional_path, say, since_process_start, with_result
from open_autoglm.bundle.huggingface import read_tokenizer
from open_autoglm.chat.template import CONTROL_TOKENS
from open_autoglm.data import encode_examples, prepare, train_tokenizer, write_reports
from open_autoglm.data.plugin_tokenizer import train_plugin_tokenizer
from open_autoglm.data.read_twice import reads_twice
from open_autoglm.errors import CheckpointError
from open_autoglm.evaluate import answer_room
from open_autoglm.models.checkpoint import load_config
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.storage import write_atomic

_MAX_LENGTH: Final = 1024


def read_data(packet: Packet, context: StageContext) -> Packet:
    """Step 1: files -> examples, task, report, tokenizer and tokens, in `data/`."""
    started = time.monotonic() - since_process_start()
    settings = packet.payload["settings"]
    folder = context.folder / "data"
    prepared = prepare(
        Path(settings["train"]),
        valid=optional_path(settings["valid"]),
        test=optional_path(settings["test"]),
        task=settings["task"],
        columns=settings["columns"] or None,
        seed=settings["seed"],
        mask_pii=settings.get("mask_pii", False),
        remove_near_duplicates=settings.get("remove_near_duplicates", False),
        scratch=folder,
    )
    base = optional_path(settings["base"])
    if base is not None:
        tokenizer = read_tokenizer(base)
        if missing := [token for token in CONTROL_TOKENS if tokenizer.token_to_id(token) is None]:
            raise CheckpointError(f"{base}: its tokenizer has no token '{missing[0]}', which GLM's chat format needs")
    elif (plugin := settings.get("tokenizer")) is not None:
        tokenizer = train_plugin_tokenizer(plugin, prepared.train)
    else:
        tokenizer = train_tokenizer(prepared.train, prepared.task)
    longest = _MAX_LENGTH if base is None else min(_MAX_LENGTH, load_config(base).max_position_embeddings)
    if base is None and reads_twice(prepared.train, tokenizer, prepared.task, max_length=longest):
        prepared = replace(prepared, task=replace(prepared.task, reads_twice=True))
    encoded = {
        name: encode_examples(examples, tokenizer, prepared.task, max_length=longest)
        for name, examples in (("train", prepared.train), ("valid", prepared.valid))
    }
    prepared = prepared.with_shortened(encoded)
    prepared.save(folder)
    write_reports(prepared, folder)
    encoded["train"].save(folder / "train.tokens")
    write_atomic(folder / "tokenizer.json", tokenizer.to_str())
    lengths = encoded["train"].lengths
    summary = {
        "task": prepared.task.kind.value,
        "confidence": prepared.report.confidence,
        "reason": prepared.report.reason,
        "examples": {"train": len(prepared.train), "valid": len(prepared.valid), "test": len(prepared.test)},
        "vocabulary": tokenizer.get_vocab_size(),
        "tokens": int(lengths.sum()),
        "max_length": int(longest),
        "longest": int(lengths.max()),
        "answer_room": answer_room(itertools.chain(prepared.train, prepared.valid), tokenizer),
        "digest": prepared.digest(),
        "seconds": round(time.monotonic() - started, 2),
    }
    context.emit({"event": "data_ready", **summary})
    say(
        f"data: {summary['task']} ({prepared.report.confidence:.0%} sure: {prepared.report.reason}); "
        f"{len(prepared.train)} train, {len(prepared.valid)} valid, {len(prepared.test)} test; "
        f"{summary['vocabulary']} tokens in the vocabulary"
    )
    return with_result(packet, "data", summary)
