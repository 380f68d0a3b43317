# SPDX-License-Identifier: Apache-2.0
"""What do smaller forms of a GLM cost in quality, and what do they save in bytes and time?

python bench/compress.py --text FILE.txt --minutes 18 --model-folder DIR --llm-compressor-python PYTHON \
    --torchao-python PYTHON

Trains a GLM of two million parameters on the first part of a text (or takes the one in DIR) and makes it smaller with
calibration windows of that part: int8, int4 by each way of rounding, pruned, distilled, trained in 4 bits. Measures on
the rest, with exact activations (PyTorch over the weights as stored): the mean Kullback-Leibler divergence of the
predictions from float32's, and perplexity. What rounding adds to a text's loss is small beside how much it differs
between texts of a few thousand tokens, so each change has its standard error, over the windows, and its share of what
plain rounding adds an interval that holds 95% of 2,000 resamplings of the windows. llm-compressor quantises the same
model on the same windows in the same run, and its files are read and scored as ours are; torchao's dynamic int8 runs in
transformers. Last, all forms take turns in the engine, on one thread and on all: speeds are medians of the rounds,
relative to float32 in the same round.
Writes bench/results/compress.json after each form, and compress.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from columns import significant, table
from engine import RESULTS
from machine import command_line, describe_machine
from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.distil import distil
from open_autoglm.compress.distil_settings import DistilSettings
from open_autoglm.compress.engine_latency import measure_latency
from open_autoglm.compress.int4_file import write_int4
from open_autoglm.compress.prune_checkpoint import prune_checkpoint
from open_autoglm.compress.pruned_shape import PruningSettings
from open_autoglm.compress.quantize_checkpoint import quantize_checkpoint
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.engine.backends import load_backend
from open_autoglm.models.checkpoint import load_model, quantize_in_place, save_int8
from open_autoglm.models.quantized_linear import unpack_in_place
from open_autoglm.storage import write_json
from open_autoglm.targets import usable_cores
from plots import plot_bars
from text_model import TRAINING_SHARE, TextModel, ensure_text_model, log_probabilities, split_text

_LLM_COMPRESSOR = "OPEN_AUTOGLM_BENCH_LLM_COMPRESSOR_PYTHON"
_TORCHAO = "OPEN_AUTOGLM_BENCH_TORCHAO_PYTHON"
_PEERS = Path(__file__).parent / "peers"
_RESAMPLINGS = 2000
_RTN = "int4 rtn, whole range"
_ROUNDINGS: dict[str, dict[str, Any]] = {
    _RTN: {"method": "rtn", "search": False},
    "int4 rtn": {"method": "rtn"},
    "int4 gptq": {"method": "gptq"},
    "int4 gptq, in order": {"method": "gptq", "activation_order": False},
    "int4 awq": {"method": "awq"},
    "int4 awq, to nearest": {"method": "awq", "compensate": False},
}


@dataclass
class Run:
    """A model, its smaller forms so far, and where they lie.

    reference: float32's log-probabilities. added: nats that a form adds to a token, float64[windows], by name of form.
    engines: folder and weights by name of form.
    """

    arguments: argparse.Namespace
    made: TextModel
    work: Path
    record: dict[str, Any]
    reference: torch.Tensor | None = None
    added: dict[str, np.ndarray] = field(default_factory=dict)
    engines: dict[str, tuple[Path, str]] = field(default_factory=dict)

    @property
    def test(self) -> np.ndarray:
        """The held-out windows that are scored."""
        return self.made.test[: self.arguments.windows]

    def score(self, name: str, folder: Path, weights: str, file: str, *, engine: bool = True) -> None:
        """Measure the quality and size of a form, and note it for the engine."""
        model = load_model(folder, weights=weights)
        unpack_in_place(model)
        size = sum(path.stat().st_size for path in folder.glob(file))
        self.add(name, log_probabilities(model.eval(), self.test), size)
        if engine:
            self.engines[name] = (folder, weights)

    def add(self, name: str, predicted: torch.Tensor, size: int | None) -> None:
        """Count a form, and write the record."""
        truth = torch.from_numpy(self.test[:, 2:])
        if self.reference is None:
            self.reference = predicted
        nats = -predicted.gather(1, truth.flatten()[:, None]).double()
        exact_nats = -self.reference.gather(1, truth.flatten()[:, None]).double()
        self.added[name] = (nats - exact_nats).view(truth.shape).mean(dim=1).numpy()
        found: dict[str, Any] = {"perplexity": float(nats.mean().exp())}
        parts = zip(self.reference.split(2048), predicted.split(2048), strict=True)
        divergence = sum(float((exact.exp() * (exact - part)).sum()) for exact, part in parts) / truth.numel()
        found["mean_kl"] = significant(divergence, 3)
        formats = self.record["formats"]
        exact = formats.get("float32", found)
        found["perplexity_change"] = significant(found["perplexity"] / exact["perplexity"] - 1, 3)
        found["perplexity_change_error"] = significant(_standard_error(self.added[name]), 2)
        found["perplexity"] = significant(found["perplexity"], 6)
        if name == _RTN or _RTN in formats:
            found["share_of_rtn_kl"] = significant(divergence / formats.get(_RTN, found)["mean_kl"], 3)
            found["share_of_rtn_loss"] = _share(self.added[name], self.added[_RTN])
        if size is not None:
            found |= {"bytes": size, "times_smaller": significant(exact.get("bytes", size) / size, 3)}
        self.put(name, found)

    def put(self, name: str, found: dict[str, Any]) -> None:
        """Write the record with this form in it."""
        self.record["formats"][name] = self.record["formats"].get(name, {}) | found
        write_json(self.arguments.out, self.record)
        print(name, found, flush=True)


def main() -> None:
    """Measure, write, show."""
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model_folder or Path(temporary)
        share = arguments.training_share
        made = ensure_text_model(arguments.text, folder, minutes=arguments.minutes, training_share=share)
        record = {
            "command": command_line(),
            "model": json.loads((made.folder / "config.json").read_text()),
            "calibration_tokens": arguments.samples * made.train.shape[1],
            "group_size": arguments.group_size,
            "predicted_tokens": int(made.test[: arguments.windows, 2:].size),
            "machine": describe_machine(),
            "formats": {},
        }
        run = Run(arguments, made, Path(temporary), record)
        measure(run)
    _plot(record["formats"], arguments.out.with_suffix(".png"))
    print(json.dumps(record) if arguments.json else f"{_show(record['formats'])}\nwritten: {arguments.out}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text, or JSONL rows with a source: megabytes")
    parser.add_argument("--training-share", type=float, default=TRAINING_SHARE, help="of the text; the rest is scored")
    parser.add_argument("--minutes", type=float, default=18.0, help="of training")
    parser.add_argument("--model-folder", type=Path, help="where the trained model is kept")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows of 128 tokens")
    parser.add_argument("--windows", type=int, default=300, help="held-out windows that are scored")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300, help="of distillation and of training in 4 bits")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 leaves it out")
    how = "a Python that has {0}: python -m venv peer && peer/bin/pip install {0} transformers datasets"
    for option, variable, library in (
        ("--llm-compressor-python", _LLM_COMPRESSOR, "llmcompressor"),
        ("--torchao-python", _TORCHAO, "torchao"),
    ):
        parser.add_argument(option, type=Path, default=os.environ.get(variable), help=how.format(library))
    parser.add_argument("--out", type=Path, default=RESULTS / "compress.json")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    return parser.parse_args()


def measure(run: Run) -> None:
    """Every form of one model: quality first, speeds last."""
    arguments = run.arguments
    rows = run.made.train[np.random.default_rng(0).permutation(len(run.made.train))[: arguments.samples]]
    calibration = Calibration(rows.ravel().astype(np.int32), np.full(len(rows), rows.shape[1]), "training windows")
    source = run.work / "float32"
    shutil.copytree(run.made.folder, source, ignore=shutil.ignore_patterns("best"))
    run.score("float32", source, "float32", "model.safetensors")
    save_int8(quantize_in_place(load_model(source), "int8"), source)
    run.score("int8", source, "int8", "int8.safetensors")
    for name, changes in _ROUNDINGS.items():
        place = run.work / name.replace(" ", "-").replace(",", "")
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("*.safetensors"))
        settings = QuantizationSettings(group_size=arguments.group_size, layout="awq", **changes)
        write_int4(source, place, settings, calibration)
        run.score(name, place, "int4", "int4.safetensors")
    # The same codes as the tools store them, embeddings in float16.
    settings = QuantizationSettings(method="gptq", group_size=arguments.group_size, layout="awq")
    quantize_checkpoint(source, run.work / "hf", settings, calibration)
    run.score("int4 gptq, AutoAWQ's files", run.work / "hf", "float32", "model.safetensors")
    _llm_compressor(run, source, rows)
    if arguments.torchao_python:
        _torchao(run, source)
    _learn(run, source, calibration)
    if arguments.rounds:
        _time(run)


def _learn(run: Run, source: Path, calibration: Calibration) -> None:
    """The forms that are other models, or are trained."""
    data = run.work / "text.jsonl"
    content, _ = split_text(run.arguments.text, run.arguments.training_share)
    pieces = [content[start : start + 400] for start in range(0, len(content), 400)]
    data.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    pruned = run.work / "pruned"
    prune_checkpoint(source, pruned, PruningSettings(ratio=0.25), calibration)
    run.score("pruned by 25%", pruned, "float32", "model.safetensors")
    steps = run.arguments.steps
    for name, settings in (
        ("pruned by 25%, distilled", DistilSettings(student=str(pruned), steps=steps)),
        ("int4 trained (QAT)", DistilSettings(qat=True, steps=steps, group_size=run.arguments.group_size)),
    ):
        out = distil([source], data, run.work / name.replace(" ", "-"), settings).folder
        run.score(name, out, "float32", "*.safetensors")


def _llm_compressor(run: Run, source: Path, rows: np.ndarray) -> None:
    tokens = run.work / "calibration.npy"
    np.save(tokens, rows)
    for method in ("rtn", "gptq", "awq"):
        name, out = f"llm-compressor int4 {method}", run.work / f"peer-{method}"
        script = [_PEERS / "quantize_llmcompressor.py", source, tokens, out, method, run.arguments.group_size]
        done = _peer(run.arguments.llm_compressor_python, script)
        if isinstance(done, str):
            run.put(name, {"missing": done})
        else:
            run.score(name, out, "float32", "*.safetensors", engine=False)


def _torchao(run: Run, source: Path) -> None:
    windows, predicted = run.work / "windows.npy", run.work / "predicted.npy"
    np.save(windows, run.test)
    script = [_PEERS / "quantize_torchao.py", source, windows, predicted, usable_cores(), run.arguments.rounds or 1]
    done = _peer(run.arguments.torchao_python, script)
    if isinstance(done, str):
        run.put("torchao dynamic int8", {"missing": done})
        return
    times = json.loads(done.stdout.splitlines()[-1])
    run.add("torchao dynamic int8", torch.from_numpy(np.load(predicted)), None)
    share = significant(times["float32"] / times["int8"], 3)
    run.put("torchao dynamic int8", {"milliseconds_per_token": times, "times_faster_than_its_float32": share})


def _peer(python: Path | None, script: list[Any]) -> subprocess.CompletedProcess[str] | str:
    """Run a peer's script. Returns what it said, or why it could not be run."""
    if not python:
        return "not installed; --help says how"
    done = subprocess.run([str(word) for word in (python, *script)], capture_output=True, text=True, check=False)
    return done if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1][:300]


def _time(run: Run) -> None:
    """All forms in turns, so that what else the machine does meets all of them."""
    for threads in dict.fromkeys((1, usable_cores())):
        tokens: dict[str, list[float]] = {name: [] for name in run.engines}
        prompts: dict[str, list[float]] = {name: [] for name in run.engines}
        for _ in range(run.arguments.rounds):
            for name, (folder, weights) in run.engines.items():
                backend = load_backend("native", folder, weights=weights, threads=threads)
                latency = measure_latency(backend)
                backend.close()
                tokens[name].append(latency.milliseconds_per_token)
                prompts[name].append(1 / latency.prompt_tokens_per_second)
        for name in run.engines:
            found = {
                "milliseconds_per_token": significant(statistics.median(tokens[name]), 3),
                "times_faster": _times_faster(tokens["float32"], tokens[name]),
                "prompt_tokens_per_second": significant(1 / statistics.median(prompts[name]), 4),
                "prompt_times_faster": _times_faster(prompts["float32"], prompts[name]),
            }
            run.put(name, {f"threads_{threads}": found})


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / len(values) ** 0.5


def _share(ours: np.ndarray, plain: np.ndarray) -> dict[str, float]:
    """What a form adds to the loss, in parts of what plain rounding adds. Both: nats a token, by window."""
    chosen = np.random.default_rng(0).integers(0, len(plain), (_RESAMPLINGS, len(plain)))
    low, high = np.quantile(ours[chosen].mean(axis=1) / plain[chosen].mean(axis=1), (0.025, 0.975))
    share = float(ours.mean() / plain.mean())
    return {name: significant(float(value), 3) for name, value in (("share", share), ("low", low), ("high", high))}


def _times_faster(exact: list[float], other: list[float]) -> float:
    return significant(statistics.median(a / b for a, b in zip(exact, other, strict=True)), 3)


def _plot(formats: dict[str, dict[str, Any]], path: Path) -> None:
    measured = {name: found for name, found in formats.items() if "int4" in name and "share_of_rtn_kl" in found}
    shown = {name: found for name, found in measured.items() if found["share_of_rtn_kl"] < 2}
    series = {
        "added to the held-out loss": [100 * found["share_of_rtn_loss"]["share"] for found in shown.values()],
        "KL divergence from float32": [100 * found["share_of_rtn_kl"] for found in shown.values()],
    }
    names = [
        name.replace("llm-compressor", "llm-\ncompressor\n").replace(", ", ",\n").replace("'s ", "'s\n")
        for name in shown
    ]
    plot_bars(names, series, title="What rounding to 4 bits costs", unit="% of plain rounding's", path=path, line=50.0)


def _show(formats: dict[str, dict[str, Any]]) -> str:
    quality = ["perplexity", "change", "mean KL", "of RTN's", "of RTN's loss"]
    headings = [*quality, "MB", "smaller", "faster, 1 thread", "all threads"]
    rows: dict[str, list[str]] = {}
    missing: list[str] = []
    for name, found in formats.items():
        if "missing" in found:
            missing.append(f"{name} was not measured: {found['missing']}")
            continue
        shared = "share_of_rtn_kl" in found
        speeds = [f"{found[key]['times_faster']:.2f}x" for key in sorted(found) if key.startswith("threads_")]
        rows[name] = [
            f"{found['perplexity']:.3f}",
            f"{found['perplexity_change']:+.2%} ± {found['perplexity_change_error']:.2%}",
            f"{found['mean_kl']:.2e}",
            f"{found['share_of_rtn_kl']:.0%}" if shared else "",
            "{share:.0%} ({low:.0%} to {high:.0%})".format_map(found["share_of_rtn_loss"]) if shared else "",
            f"{found['bytes'] / 1e6:.2f}" if "bytes" in found else "",
            f"{found['times_smaller']:.2f}x" if "bytes" in found else "",
            *[*speeds, "", ""][:2],
        ]
    return "\n".join([table(headings, rows), *missing])


if __name__ == "__main__":
    main()
