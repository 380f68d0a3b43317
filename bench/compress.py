# SPDX-License-Identifier: Apache-2.0
"""What do int8 and int4 weights cost in perplexity, by each way of rounding, and what do they save?

python bench/compress.py --text FILE.txt --minutes 18 --model-folder DIR --llm-compressor-python PYTHON

Trains a GLM of two million parameters on nine tenths of a text (or takes the one in DIR), quantises it with calibration
windows of that part, and measures on the rest: perplexity with exact activations (PyTorch over the weights as stored),
file size, and the engine's speed. llm-compressor quantises the same model on the same windows in the same run, and its
files are read and scored as ours are. Writes bench/results/compress.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from columns import significant, table
from engine import RESULTS
from machine import command_line, describe_machine
from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.engine_latency import measure_latency
from open_autoglm.compress.int4_file import write_int4
from open_autoglm.compress.quantize_checkpoint import quantize_checkpoint
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.engine.backends import load_backend
from open_autoglm.models.checkpoint import load_model, quantize_in_place, save_int8
from open_autoglm.models.quantized_linear import unpack_in_place
from open_autoglm.storage import write_json
from plots import plot_bars
from text_model import TextModel, ensure_text_model, perplexity

_PYTHON_VARIABLE = "OPEN_AUTOGLM_BENCH_LLM_COMPRESSOR_PYTHON"
_PEER = Path(__file__).parent / "peers" / "quantize_llmcompressor.py"
_HOW = "python -m venv peer && peer/bin/pip install llmcompressor"


def main() -> None:
    """Measure, write, show."""
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model_folder or Path(temporary)
        made = ensure_text_model(arguments.text, folder, minutes=arguments.minutes)
        formats = measure(made, arguments, Path(temporary))
    exact = formats["float32"]
    rtn = formats["int4 rtn, whole range"]["perplexity"] - exact["perplexity"]
    for found in formats.values():
        if "missing" not in found:
            found["perplexity_change"] = significant(found["perplexity"] / exact["perplexity"] - 1, 3)
            found["share_of_rtn_loss"] = significant((found["perplexity"] - exact["perplexity"]) / rtn, 3)
            found["times_smaller"] = significant(exact["bytes"] / found["bytes"], 3)
    record = {
        "command": command_line(),
        "model": json.loads((made.folder / "config.json").read_text()),
        "calibration_tokens": arguments.samples * made.train.shape[1],
        "group_size": arguments.group_size,
        "predicted_tokens": int(made.test[: arguments.windows, 2:].size),
        "formats": formats,
        "machine": describe_machine(),
    }
    path = arguments.out or RESULTS / "compress.json"
    write_json(path, record)
    _plot(formats, path.with_suffix(".png"))
    print(json.dumps(record) if arguments.json else f"{_show(formats)}\nwritten: {path}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text of a megabyte or so")
    parser.add_argument("--minutes", type=float, default=18.0, help="of training")
    parser.add_argument("--model-folder", type=Path, help="where the trained model is kept")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows of 128 tokens")
    parser.add_argument("--windows", type=int, default=300, help="held-out windows that are scored")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--llm-compressor-python", type=Path, default=os.environ.get(_PYTHON_VARIABLE), help=_HOW)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    return parser.parse_args()


def measure(made: TextModel, arguments: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """Every format of one model. Returns perplexity, bytes and speed by name."""
    rows = made.train[np.random.default_rng(0).permutation(len(made.train))[: arguments.samples]]
    calibration = Calibration(rows.ravel().astype(np.int32), np.full(len(rows), rows.shape[1]), "training windows")
    test = made.test[: arguments.windows]
    formats: dict[str, dict[str, Any]] = {}

    def score(name: str, folder: Path, weights: str, file: str, *, speed: bool = True) -> None:
        model = load_model(folder, weights=weights)
        unpack_in_place(model)
        found: dict[str, Any] = {"perplexity": significant(perplexity(model.eval(), test), 6)}
        found["bytes"] = sum(path.stat().st_size for path in folder.glob(file))
        if speed:
            backend = load_backend("native", folder, weights=weights)
            latency = measure_latency(backend)
            backend.close()
            found["milliseconds_per_token"] = latency.milliseconds_per_token
            found["prompt_tokens_per_second"] = latency.prompt_tokens_per_second
        formats[name] = found
        print(name, found, flush=True)

    source = work / "float32"
    shutil.copytree(made.folder, source, ignore=shutil.ignore_patterns("best"))
    score("float32", source, "float32", "model.safetensors")
    save_int8(quantize_in_place(load_model(source), "int8"), source)
    score("int8", source, "int8", "int8.safetensors")
    for name, method, changes in (
        ("int4 rtn, whole range", "rtn", {"search": False}),
        ("int4 rtn", "rtn", {}),
        ("int4 gptq", "gptq", {}),
        ("int4 gptq, in order", "gptq", {"activation_order": False}),
        ("int4 awq", "awq", {}),
    ):
        place = work / name.replace(" ", "-").replace(",", "")
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("*.safetensors"))
        settings = QuantizationSettings(method=method, group_size=arguments.group_size, layout="awq", **changes)
        write_int4(source, place, settings, calibration)
        score(name, place, "int4", "int4.safetensors")
    # The same codes as the tools store them, embeddings in float16.
    settings = QuantizationSettings(method="gptq", group_size=arguments.group_size, layout="awq")
    quantize_checkpoint(source, work / "hf", settings, calibration)
    score("int4 gptq, AutoAWQ's files", work / "hf", "float32", "model.safetensors")
    for method in ("rtn", "gptq"):
        name = f"llm-compressor int4 {method}"
        reason = _peer(arguments, source, rows, work / f"peer-{method}", method)
        if reason:
            formats[name] = {"missing": reason}
        else:
            score(name, work / f"peer-{method}", "float32", "*.safetensors", speed=False)
    return formats


def _peer(arguments: argparse.Namespace, source: Path, rows: np.ndarray, out: Path, method: str) -> str:
    """Let the peer quantise. Returns why not, or nothing."""
    if not arguments.llm_compressor_python:
        return f"not installed: {_HOW}, then --llm-compressor-python peer/bin/python"
    tokens = out.with_suffix(".npy")
    np.save(tokens, rows)
    command = [arguments.llm_compressor_python, _PEER, source, tokens, out, method, arguments.group_size]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:300]


def _plot(formats: dict[str, dict[str, Any]], path: Path) -> None:
    measured = {name: found for name, found in formats.items() if "missing" not in found and name != "float32"}
    series = {"perplexity over float32's": [100 * found["perplexity_change"] for found in measured.values()]}
    names = [name.replace("llm-compressor ", "llm-compressor\n").replace(", ", ",\n") for name in measured]
    plot_bars(names, series, title="What rounding costs", unit="% of perplexity", path=path)


def _show(formats: dict[str, dict[str, Any]]) -> str:
    headings = ["perplexity", "change", "of RTN's loss", "MB", "smaller", "ms/token", "prompt tok/s"]
    rows: dict[str, list[str]] = {}
    for name, found in formats.items():
        if "missing" in found:
            rows[f"{name}: {found['missing']}"] = [""] * len(headings)
            continue
        rows[name] = [
            f"{found['perplexity']:.3f}",
            f"{found['perplexity_change']:+.2%}",
            f"{found['share_of_rtn_loss']:.0%}",
            f"{found['bytes'] / 1e6:.2f}",
            f"{found['times_smaller']:.2f}x",
            f"{found.get('milliseconds_per_token', '')}",
            f"{found.get('prompt_tokens_per_second', '')}",
        ]
    return table(headings, rows)


if __name__ == "__main__":
    main()
