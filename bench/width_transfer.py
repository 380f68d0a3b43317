# SPDX-License-Identifier: Apache-2.0
"""Does the best learning rate of a narrow model hold for a wide one? With width transfer and without.

python bench/width_transfer.py --data examples/snips --steps 80

Trains models of several widths at several learning rates, for a few steps, on the same batches, and notes the mean loss
of the last quarter of the steps. Writes bench/results/width_transfer.json, and a plot where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from machine import command_line, describe_machine
from open_autoglm.data import TokenizedExamples, encode_examples, prepare, train_tokenizer
from open_autoglm.errors import TrainingError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.storage import write_json
from open_autoglm.train.optimizers import output_gain
from open_autoglm.train.settings import TrainingSettings, WidthTransfer
from open_autoglm.train.trainer import FixedExamples, Trainer
from plots import plot_lines

RESULTS = Path(__file__).parent / "results"
_HEAD = 32


def main() -> None:
    """Train all, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("examples/snips"))
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0**power for power in range(-11, -3)])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--tokens-per-batch", type=int, default=256)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "width_transfer.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = describe_machine()
    prepared = prepare(arguments.data / "train.jsonl")
    tokenizer = train_tokenizer(prepared.train, prepared.task)
    examples = encode_examples(prepared.train, tokenizer, prepared.task, max_length=512)
    losses: dict[str, dict[str, dict[str, float | None]]] = {}
    for kind in ("with transfer", "without"):
        for width in arguments.widths:
            transfer = WidthTransfer(arguments.widths[0]) if kind == "with transfer" else None
            row = {
                f"{rate:.3g}": train(examples, tokenizer.get_vocab_size(), width, rate, arguments, transfer=transfer)
                for rate in arguments.rates
            }
            losses.setdefault(kind, {})[str(width)] = row
            print(f"{kind:13} width {width:4}: " + "  ".join(f"{rate} {_shown(loss)}" for rate, loss in row.items()))
    record = {
        "command": command_line(),
        "data": arguments.data.name,
        "optimizer": arguments.optimizer,
        "steps": arguments.steps,
        "loss": losses,
        "best_rate": {kind: {width: _best(row) for width, row in rows.items()} for kind, rows in losses.items()},
        "machine": machine,
    }
    write_json(arguments.out, record)
    panels = {
        kind: {
            f"width {width}": [(float(rate), loss) for rate, loss in row.items() if loss is not None]
            for width, row in rows.items()
        }
        for kind, rows in losses.items()
    }
    title = f"loss after {arguments.steps} steps on {arguments.data.name}"
    plot_lines(panels, title=title, label="learning rate", path=arguments.out.with_suffix(".png"))
    print(json.dumps(record["best_rate"]))


def train(
    examples: TokenizedExamples,
    vocabulary: int,
    width: int,
    rate: float,
    arguments: Any,
    *,
    transfer: WidthTransfer | None,
) -> float | None:
    """The mean loss of the last quarter of the steps, None where training diverged."""
    config = ModelConfig(
        vocab_size=-(-vocabulary // 32) * 32,
        hidden_size=width,
        intermediate_size=int(2.5 * width),
        num_hidden_layers=2,
        num_attention_heads=width // _HEAD,
        num_key_value_heads=width // _HEAD,
        head_dim=_HEAD,
    )
    model = GlmForCausalLM(config)
    model.initialize(torch.Generator().manual_seed(0), output_gain=output_gain(transfer, width))
    settings = TrainingSettings(
        learning_rate=rate,
        tokens_per_batch=arguments.tokens_per_batch,
        warmup_steps=10,
        dropout=0.0,
        optimizer=arguments.optimizer,
        width_transfer=transfer,
    )
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, settings, FixedExamples(examples), examples, Path(folder))
        try:
            trainer.run_steps(arguments.steps, lambda _, loss: losses.append(loss))
        except TrainingError:
            return None
    return round(statistics.mean(losses[-max(1, len(losses) // 4) :]), 4)


def _best(row: dict[str, float | None]) -> str:
    return min(row, key=lambda rate: math.inf if row[rate] is None else float(row[rate] or 0.0))


def _shown(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


if __name__ == "__main__":
    main()
