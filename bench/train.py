# SPDX-License-Identifier: Apache-2.0
"""How fast does the trainer train, beside a plain loop over transformers' model on padded batches?

python bench/train.py --data examples/snips --json

All sides train the same GLM from the same weights on the same tokens, with AdamW at the same constant rate, in one
process that alternates between them. The plain loop is what a tutorial shows: shuffled batches of as many examples,
padded to the longest, labels of -100 where nothing is learnt, in float32. Ours chooses its threads and its precision as
in a build; where the processor has bfloat16 in hardware, which ours then uses, the plain loop also runs under autocast
to that, as a third side. What counts is tokens that are no padding. Afterwards all are scored on the validation split
by tokens seen, so that nobody is fast by learning less.
Writes bench/results/train.json, and a plot where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from machine import command_line, describe_machine, pin_to
from open_autoglm.chat.template import stop_token_ids
from open_autoglm.data import TokenizedExamples, encode_examples, prepare, train_tokenizer
from open_autoglm.models.checkpoint import save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.storage import write_json
from open_autoglm.targets import usable_cores
from open_autoglm.train.gradient_workers import workers_for
from open_autoglm.train.loss import bf16_is_fast, validation_loss
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples, Trainer
from plots import plot_bars
from spread import spread

RESULTS = Path(__file__).parent / "results"
_MAX_LENGTH = 1024
_WARM_UP_STEPS = 10
_IGNORED = -100


def main() -> None:
    """Measure, print a table or the JSON, and write the results."""
    arguments = parse(sys.argv[1:])
    threads = arguments.threads or usable_cores()
    pin_to(threads)
    torch.set_num_threads(threads)
    machine = describe_machine()
    train, valid, config = read(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "open_autoglm": Ours(train, config, arguments, Path(folder)),
            "transformers": Plain(train, config, arguments, Path(folder)),
        }
        if bf16_is_fast(torch.device("cpu")):
            sides["transformers_bfloat16"] = Plain(train, config, arguments, Path(folder), autocast=True)
        rounds = measure(sides, arguments)
        losses = {name: side.valid_loss(valid, Path(folder)) for name, side in sides.items()}
    record = summarise(rounds, losses, sides, train, arguments) | {"threads": threads, "machine": machine}
    record["model"] = {**config.to_dict(), "parameters": config.num_parameters()}
    path = arguments.out or RESULTS / "train.json"
    write_json(path, record)
    plot(record, path.with_suffix(".png"))
    print(json.dumps(record) if arguments.json else show(record) + f"\nwritten: {path}")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("examples/snips"), help="a folder with train.* and valid.*")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=6, help="of 32; half as many hold keys and values")
    parser.add_argument("--tokens-per-batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30, help="of each side in each round")
    parser.add_argument("--threads", type=int, help="also pins the process; all usable processors by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--compile", action="store_true", help="our side with torch.compile")
    parser.add_argument("--out", type=Path, help="of the JSON and the plot; bench/results/train.json by default")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    return parser.parse_args(words)


def read(arguments: argparse.Namespace) -> tuple[TokenizedExamples, TokenizedExamples, ModelConfig]:
    """The tokens of both splits, as a build makes them, and the model that a build tries first."""
    prepared = prepare(arguments.data / "train.jsonl", valid=arguments.data / "valid.jsonl")
    tokenizer = train_tokenizer(prepared.train, prepared.task)
    encoded = [
        encode_examples(examples, tokenizer, prepared.task, max_length=_MAX_LENGTH)
        for examples in (prepared.train, prepared.valid)
    ]
    hidden = 32 * arguments.heads
    config = ModelConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 32) * 32,
        hidden_size=hidden,
        intermediate_size=int(2.5 * hidden),
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=max(1, arguments.heads // 2),
        head_dim=32,
        eos_token_ids=stop_token_ids(tokenizer),
        pad_token_id=0,
    )
    return encoded[0], encoded[1], config


class Ours:
    """The product's trainer."""

    def __init__(
        self, train: TokenizedExamples, config: ModelConfig, arguments: argparse.Namespace, folder: Path
    ) -> None:
        model = GlmForCausalLM(config)
        model.initialize(torch.Generator().manual_seed(arguments.seed))
        save_model(model, folder / "start")
        settings = TrainingSettings(
            learning_rate=arguments.learning_rate,
            tokens_per_batch=arguments.tokens_per_batch,
            dropout=0.0,
            seed=arguments.seed,
            optimizer=arguments.optimizer,
            compile=arguments.compile,
        )
        workers = workers_for(model, settings, torch.get_num_threads())
        self.trainer = Trainer(model, settings, FixedExamples(train), train, folder / "run", workers=workers)

    @property
    def tokens(self) -> int:
        """Seen so far, none of them padding."""
        return self.trainer.progress.tokens

    def run(self, steps: int) -> None:
        """Train."""
        self.trainer.run_steps(steps)

    def valid_loss(self, valid: TokenizedExamples, folder: Path) -> float:
        """Nats per example."""
        del folder
        return validation_loss(self.trainer.model, valid)


class Plain:
    """A loop over transformers' model as a tutorial shows it."""

    def __init__(
        self,
        train: TokenizedExamples,
        config: ModelConfig,
        arguments: argparse.Namespace,
        folder: Path,
        *,
        autocast: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
        )
        self.train, self.rate, self.warm_up = train, arguments.learning_rate, 60
        self.batch_size = max(1, round(arguments.tokens_per_batch / float(train.lengths.mean())))
        self.generator = np.random.default_rng(arguments.seed)
        self.order = np.zeros(0, dtype=np.int64)
        self.tokens = self.padded_tokens = self.steps = 0
        self.autocast = autocast

    def run(self, steps: int) -> None:
        """Train."""
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, (self.steps + 1) / self.warm_up)
            batch = self.next_batch()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = self.model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
            if not math.isfinite(loss.item()):
                raise SystemExit("the plain loop diverged")

    def next_batch(self) -> dict[str, torch.Tensor]:
        """Random examples, padded to the longest."""
        if len(self.order) < self.batch_size:
            self.order = self.generator.permutation(len(self.train))
        chosen, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        offsets = np.asarray(self.train.offsets)
        longest = int(self.train.lengths[chosen].max())
        ids = np.zeros((len(chosen), longest), dtype=np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, _IGNORED)
        for row, index in enumerate(chosen):
            span = slice(int(offsets[index]), int(offsets[index + 1]))
            length = span.stop - span.start
            ids[row, :length], mask[row, :length] = self.train.token_ids[span], 1
            labels[row, :length] = np.where(self.train.learn[span], self.train.token_ids[span], _IGNORED)
        self.tokens += int(mask.sum())
        self.padded_tokens += mask.size
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }

    def valid_loss(self, valid: TokenizedExamples, folder: Path) -> float:
        """Nats per example, computed as ours is."""
        from open_autoglm.models.checkpoint import load_model

        self.model.save_pretrained(folder / "plain")
        return validation_loss(load_model(folder / "plain"), valid)


def measure(sides: dict[str, Ours | Plain], arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Useful tokens per second and per second of processor time of each side; who goes first alternates.

    Other programs on the machine take from the first; the second they change little, as long as there is one thread.
    """
    for side in sides.values():
        side.run(_WARM_UP_STEPS)
    rounds = []
    for number in range(arguments.rounds):
        found: dict[str, float] = {}
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            before, started, processor = sides[name].tokens, time.perf_counter(), time.process_time()
            sides[name].run(arguments.steps)
            tokens = sides[name].tokens - before
            found[name] = tokens / (time.perf_counter() - started)
            found[f"{name}_processor"] = tokens / (time.process_time() - processor)
        rounds.append({**found, "load_average": round(os.getloadavg()[0], 2)})
    return rounds


def summarise(
    rounds: list[dict[str, float]],
    losses: dict[str, float],
    sides: dict[str, Ours | Plain],
    train: TokenizedExamples,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One record with all that was measured."""
    speeds = {name: spread([row[name] for row in rounds]) for name in sides}
    by_processor = {name: spread([row[f"{name}_processor"] for row in rounds]) for name in sides}
    ratios = {
        f"ratio_to_{name}{kind}": spread([row[f"open_autoglm{kind}"] / row[f"{name}{kind}"] for row in rounds], 3)
        for name in sides
        if name != "open_autoglm"
        for kind in ("", "_processor")
    }
    plain = sides["transformers"]
    assert isinstance(plain, Plain)
    return {
        "command": command_line(),
        "data": arguments.data.name,
        "tokens_per_batch": arguments.tokens_per_batch,
        "optimizer": arguments.optimizer,
        "compile": arguments.compile,
        "mean_length": round(float(train.lengths.mean()), 1),
        "share_learnt": round(float(np.asarray(train.learn).mean()), 3),
        "share_useful_when_padded": round(plain.tokens / plain.padded_tokens, 3),
        "examples_per_padded_batch": plain.batch_size,
        "useful_tokens_per_s": speeds,
        **ratios,
        "useful_tokens_per_processor_s": by_processor,
        "seen": {
            name: {"tokens": side.tokens, "valid_nats_per_example": round(losses[name], 4)}
            for name, side in sides.items()
        },
        "rounds": [{name: round(value, 2) for name, value in row.items()} for row in rounds],
        "versions": {"torch": torch.__version__, "transformers": _version("transformers")},
    }  # fmt: skip


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def show(record: dict[str, Any]) -> str:
    """The record in a few lines."""
    lines = [f"{record['model']['parameters'] / 1e6:.2f}M parameters, {record['threads']} threads"]
    for name, speed in record["useful_tokens_per_s"].items():
        seen = record["seen"][name]
        lines.append(
            f"{name:22} {speed['median']:8.0f} useful tokens/s ({speed['least']:.0f} to {speed['most']:.0f}); after "
            f"{seen['tokens']} tokens {seen['valid_nats_per_example']:.3f} nats per validation example"
        )
    for name, ratio in record.items():
        if not name.startswith("ratio_to_"):
            continue
        lines.append(f"{name} {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """Both sides, round by round."""
    plot_bars(
        [str(number + 1) for number in range(len(record["rounds"]))],
        {name: [row[name] for row in record["rounds"]] for name in record["useful_tokens_per_s"]},
        title=f"training {record['model']['parameters'] / 1e6:.1f}M parameters on {record['data']}, by round",
        unit="useful tokens/s",
        path=path,
    )


if __name__ == "__main__":
    main()
