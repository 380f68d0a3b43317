# SPDX-License-Identifier: Apache-2.0
"""How much memory and time does it take to quantise a model of nine billion parameters?

python bench/quantize_memory.py --layers 40 --folder DIR

Writes a checkpoint of GLM-4-9B's shape with random bfloat16 weights into DIR (18 GB with all 40 layers), quantises it
with GPTQ, and writes the peak memory and the seconds per layer to bench/results/quantize_memory.json. With fewer layers
the peak is the same, since one layer is in memory at a time; the time of the whole is then extrapolated, which the
record says.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from engine import RESULTS
from machine import command_line, describe_machine, resident_bytes
from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.quantize_checkpoint import quantize_checkpoint
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.tensor_names import tensor_shapes
from open_autoglm.storage import write_json

_LAYERS = 40
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


def main() -> None:
    """Write, quantise, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=_LAYERS)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written; deleted afterwards")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--method", choices=("rtn", "gptq", "awq"), default="gptq")
    arguments = parser.parse_args()
    config = shape(arguments.layers)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        source, out = Path(temporary) / "float", Path(temporary) / "out"
        write_random(config, source)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        total = arguments.samples * arguments.length
        ids = np.random.default_rng(1).integers(0, config.vocab_size, total).astype(np.int32)
        lengths = np.full(arguments.samples, arguments.length)
        started = time.monotonic()
        outcome = quantize_checkpoint(
            source,
            out,
            QuantizationSettings(method=arguments.method, group_size=128, layout="awq"),
            Calibration(ids, lengths, "random tokens"),
            on_progress=lambda done, count: print(
                f"{done} of {count}, {time.monotonic() - started:.0f} s, "
                f"{resident_bytes(field='VmHWM') / 1e9:.2f} GB at most",
                flush=True,
            ),
        )
        seconds = outcome.report["layer_seconds"]
        record = {
            "command": command_line(),
            "layers": arguments.layers,
            "layers_of_the_model": _LAYERS,
            "calibration_tokens": total,
            "peak_memory": outcome.report["peak_memory"],
            "peak_before_quantising": before,
            "seconds_per_layer": seconds,
            "seconds_extrapolated_to_all_layers": round(_LAYERS * sum(seconds) / len(seconds)),
            "size": outcome.report["size"],
            "source_size": outcome.report["source_size"],
            "machine": describe_machine(),
        }
        shutil.rmtree(out)
    write_json(RESULTS / "quantize_memory.json", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
