# SPDX-License-Identifier: Apache-2.0
"""How much memory and time does it take to quantise a model of nine billion parameters?

python bench/quantize_memory.py --layers 40 --folder DIR

Writes a checkpoint of GLM-4-9B's shape with random bfloat16 weights into DIR (18 GB with all 40 layers), quantises it
with GPTQ, and writes the peak memory and the seconds per layer to bench/results/quantize_memory_METHOD.json.

In parts: with `--minutes 30` it stops after the last layer that ends before that, says so, exits with 3, and the same
command goes on there; the record then has the highest peak of all parts. What is known so far is written after each
layer, with `finished_layers` below `layers`. With fewer layers (`--layers 1`) the tables,
the calibration and each layer are as large as in the whole model, so the peak is the same but for what the file cache
maps; the time of the whole is extrapolated, and the record has from how many layers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import RESULTS
from machine import command_line, describe_machine, resident_bytes
from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.quantize_checkpoint import quantize_checkpoint
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.tensor_names import tensor_shapes
from open_autoglm.storage import write_json

_LAYERS = 40
_UNFINISHED = 3
_BLOCK = 1 << 22


def shape(layers: int) -> ModelConfig:
    """GLM-4-9B with so many of its layers."""
    return ModelConfig(
        vocab_size=151552,
        hidden_size=4096,
        intermediate_size=13696,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=8192,
        attention_bias=True,
        tie_word_embeddings=False,
    )


def write_random(config: ModelConfig, folder: Path) -> None:
    """A checkpoint in bfloat16, tensor by tensor; a block of random numbers is repeated, as only shapes matter."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    block = (generator.standard_normal(_BLOCK, dtype=np.float32) * np.float32(0.02)).view(np.uint32) >> 16
    block = block.astype(np.uint16)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, shapes = 0, dict(tensor_shapes(config))
    for name, size in shapes.items():
        length = 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in shapes.items():
            count = int(np.prod(size))
            if len(size) == 1:
                np.full(count, 0 if name.endswith("bias") else 0x3F80, dtype=np.uint16).tofile(file)
                continue
            start = int(generator.integers(0, _BLOCK))
            while count:
                part = block[start : start + count]
                part.tofile(file)
                count, start = count - len(part), 0
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), "dtype": "bfloat16"}))


class _PartDone(Exception):  # noqa: N818 - not an error
    """The time of this part is over; the layers so far are kept."""


def main() -> None:
    """Write, quantise, measure; or a part of it."""
    arguments = parse()
    if arguments.folder is None and arguments.minutes is not None:
        raise SystemExit("--minutes needs --folder, where the next part finds what this one leaves")
    with tempfile.TemporaryDirectory() as temporary:
        base = arguments.folder or Path(temporary)
        work = base / f"quantize-9b-{arguments.layers}-{arguments.method}-{arguments.samples}x{arguments.length}"
        try:
            record = quantise(arguments, work)
        except _PartDone as part:
            print(f"{part}; the same command goes on there")
            raise SystemExit(_UNFINISHED) from None
        shutil.rmtree(work)
    write_json(_file(arguments), record)
    print(json.dumps(record))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=_LAYERS)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written; deleted after the last part")
    parser.add_argument("--minutes", type=float, help="of this part; all of it if not given")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--method", choices=("rtn", "gptq", "awq"), default="gptq")
    return parser.parse_args()


def quantise(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The record of the whole. Raises _PartDone when the time of a part is over before."""
    began = time.monotonic()
    config = shape(arguments.layers)
    source, out, peaks_file = work / "float", work / "out", work / "peaks.json"
    # Its configuration is written last, so a checkpoint that has one is whole.
    if not (source / "config.json").is_file():
        write_random(config, source)
    peaks = json.loads(peaks_file.read_text()) if peaks_file.is_file() else []
    before = resident_bytes(field="VmHWM")
    total = arguments.samples * arguments.length
    ids = np.random.default_rng(1).integers(0, config.vocab_size, total).astype(np.int32)
    lengths = np.full(arguments.samples, arguments.length)
    layer_began, longest = time.monotonic(), 0.0
    first: int | None = None
    record = {
        "command": command_line(),
        "method": arguments.method,
        "layers": arguments.layers,
        "layers_of_the_model": _LAYERS,
        "calibration_tokens": total if arguments.method != "rtn" else 0,
        "peak_before_quantising": before,
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }

    def tick(done: int, count: int) -> None:
        nonlocal layer_began, longest, first
        now = time.monotonic()
        print(
            f"{done} of {count}, {now - began:.0f} s, {resident_bytes(field='VmHWM') / 1e9:.2f} GB at most", flush=True
        )
        layer, place = divmod(done, count // arguments.layers)
        first = layer if first is None else first
        if place != 1 or layer == first:
            return
        # The first matrix of a layer is done: the layers before it are on the disk, one of them by this part.
        longest, layer_began = max(longest, now - layer_began), now
        record["machine"]["load_average_after"] = round(os.getloadavg()[0], 2)
        seconds = [json.loads(file.read_text())["seconds"] for file in sorted((out / ".work").glob("layer-*.json"))]
        write_json(_file(arguments), record | _summary(seconds, [*peaks, resident_bytes(field="VmHWM")], 0.0))
        if arguments.minutes is not None and now - began + longest > 60 * arguments.minutes:
            write_json(peaks_file, [*peaks, resident_bytes(field="VmHWM")])
            raise _PartDone(f"{layer} of {arguments.layers} layers are done")

    outcome = quantize_checkpoint(
        source,
        out,
        QuantizationSettings(method=arguments.method, group_size=128, layout="awq"),
        Calibration(ids, lengths, "random tokens"),
        on_progress=tick,
    )
    report = outcome.report
    seconds = report["layer_seconds"]
    beside = report["seconds"] - sum(seconds[report["resumed_at_layer"] :])
    return record | {
        **_summary(seconds, [*peaks, report["peak_memory"]], beside),
        "parts": len(peaks) + 1,
        "not_in_it": "copying the other layers' packed weights into the last files, if layers were left out",
        "size": report["size"],
        "source_size": report["source_size"],
    }


def _summary(seconds: list[float], peaks: list[int], beside: float) -> dict[str, Any]:
    """seconds: of each layer that is finished. peaks: of each part, bytes. beside: seconds for what is no layer."""
    return {
        "finished_layers": len(seconds),
        "peak_memory": max(peaks),
        "seconds_per_layer": seconds,
        "seconds_beside_layers": round(beside, 1),
        "seconds_extrapolated_to_all_layers": round(beside + _LAYERS * statistics.median(seconds)),
    }


def _file(arguments: argparse.Namespace) -> Path:
    return RESULTS / f"quantize_memory_{arguments.method}.json"


if __name__ == "__main__":
    main()
