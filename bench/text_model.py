# SPDX-License-Identifier: Apache-2.0
"""A GLM of two million parameters trained on a real text, and the held-out rest, for questions about quality.

python bench/text_model.py TEXT_FILE FOLDER --minutes 6
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from open_autoglm.bundle.huggingface import read_tokenizer, write_tokenizer
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.segments import PromptEncoder
from open_autoglm.chat.template import stop_token_ids
from open_autoglm.data import Example, train_tokenizer
from open_autoglm.data.plain_text import chunk_text
from open_autoglm.engine.conversation import text_token_ids
from open_autoglm.models.checkpoint import load_model, save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.task import Task, TaskKind
from open_autoglm.train.trainer import bf16_is_fast

TRAINING_SHARE = 0.9
_WINDOW = 128
_BATCH = 8
_RATE = 2e-3
_WARM_UP = 100
_CHECK_SECONDS = 90.0


@dataclass(frozen=True)
class TextModel:
    """folder: of the checkpoint, with its tokenizer. train, test: windows of tokens, int64[n, window]."""

    folder: Path
    train: np.ndarray
    test: np.ndarray


def ensure_text_model(
    text: Path,
    folder: Path,
    *,
    minutes: float,
    vocabulary: int = 1024,
    seed: int = 0,
    training_share: float = TRAINING_SHARE,
) -> TextModel:
    """The model of the first part of a text under `folder`; trained unless it is there; text: see `read_text`."""
    target = folder / f"{text.stem}-{training_share:.0%}-{minutes:g}m-{seed}"
    first, rest = split_text(text, training_share)
    if not (target / "config.json").is_file():
        _train(first, rest, target, minutes, vocabulary, seed)
    encoder = PromptEncoder(read_tokenizer(target))
    return TextModel(target, windows(first, encoder), windows(rest, encoder))


def split_text(path: Path, share: float) -> tuple[str, str]:
    """The first lines of a text, which are about that share of it, and the rest. path: see `read_text`."""
    content = read_text(path)
    cut = content.index("\n", int(len(content) * share)) + 1
    return content[:cut], content[cut:]


def read_text(path: Path) -> str:
    """A text file, or the `source` of each row of a JSONL file (a text or a list of sentences), a line each."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return content
    sources = [json.loads(line)["source"] for line in content.split("\n") if line]
    return "".join((source if isinstance(source, str) else " ".join(source)) + "\n" for source in sources)


def windows(text: str, encoder: PromptEncoder, length: int = _WINDOW) -> np.ndarray:
    """A text cut into windows of tokens, each of which begins as a text does."""
    begin = text_token_ids("", encoder)
    body = text_token_ids(text, encoder)[len(begin) :]
    step = length - len(begin)
    rows = [begin + body[start : start + step] for start in range(0, len(body) - step + 1, step)]
    return np.array(rows, dtype=np.int64)


@torch.no_grad()
def perplexity(model: GlmForCausalLM, rows: np.ndarray, *, skip: int = 2) -> float:
    """exp of the mean negative log-probability of every token from number `skip` of each window on."""
    nats, count = 0.0, 0
    for start in range(0, len(rows), _BATCH):
        part = torch.from_numpy(rows[start : start + _BATCH])
        logits = _logits(model, part)[:, skip - 1 : -1]
        nats += float(F.cross_entropy(logits.flatten(0, 1).float(), part[:, skip:].flatten(), reduction="sum"))
        count += part[:, skip:].numel()
    return math.exp(nats / count)


@torch.no_grad()
def log_probabilities(model: GlmForCausalLM, rows: np.ndarray, *, skip: int = 2) -> torch.Tensor:
    """float32[tokens, vocab_size]: what is predicted for every token from number `skip` of each window on."""
    parts = [torch.from_numpy(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
    found = [_logits(model, part)[:, skip - 1 : -1].flatten(0, 1) for part in parts]
    return torch.cat([F.log_softmax(logits.float(), dim=-1) for logits in found])


def _logits(model: GlmForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    lengths = torch.full((len(rows),), rows.shape[1])
    return model.logits(model(rows.flatten(), PackedSequences(lengths))).unflatten(0, rows.shape)


def _train(text: str, rest: str, target: Path, minutes: float, vocabulary: int, seed: int) -> None:  # noqa: PLR0917
    examples = [Example((Message(Role.ASSISTANT, piece),)) for _, piece in chunk_text(text)]
    tokenizer = train_tokenizer(examples, Task(TaskKind.PLAIN_TEXT), vocabulary)
    encoder = PromptEncoder(tokenizer)
    train, test = windows(text, encoder), windows(rest, encoder)
    config = ModelConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 32) * 32,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=_WINDOW,
        attention_bias=True,
        tie_word_embeddings=False,
        eos_token_ids=stop_token_ids(tokenizer),
        pad_token_id=0,
        dropout=0.1,
    )
    model = GlmForCausalLM(config)
    model.initialize(torch.Generator().manual_seed(seed))
    print(f"training {config.num_parameters() / 1e6:.1f}M parameters on {train.size} tokens for {minutes:g} minutes")
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    started, step, best, checked = time.monotonic(), 0, math.inf, 0.0
    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min((step + 1) / _WARM_UP, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        rows = torch.from_numpy(train[generator.integers(0, len(train), _BATCH)])
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_fast(torch.device("cpu"))):
            logits = _logits(model, rows)
        loss = F.cross_entropy(logits[:, 1:-1].flatten(0, 1).float(), rows[:, 2:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if time.monotonic() - checked > _CHECK_SECONDS or share > 0.99:
            checked, found = time.monotonic(), perplexity(model.eval(), test[:64])
            if found < best:
                best = found
                save_model(model, target / "best")
            print(f"step {step}, {share:.0%}, loss {float(loss):.3f}, held-out perplexity {found:.2f}", flush=True)
    save_model(load_model(target / "best"), target)
    write_tokenizer(tokenizer, target, max_length=_WINDOW)


def main() -> None:
    """Train, and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = ensure_text_model(arguments.text, arguments.folder, minutes=arguments.minutes, seed=arguments.seed)
    print(made.folder, f"perplexity {perplexity(load_model(made.folder), made.test):.3f}")


if __name__ == "__main__":
    main()
