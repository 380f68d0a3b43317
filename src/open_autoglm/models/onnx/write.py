# SPDX-License-Identifier: Apache-2.0
"""Writing a checkpoint as an ONNX file: the graph, and its weights beside it in one file that runtimes can map."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from open_autoglm.errors import CheckpointError
from open_autoglm.models.onnx import signature
from open_autoglm.models.onnx.decoder import write_decoder
from open_autoglm.models.onnx.graph import GraphWriter
from open_autoglm.models.weights import open_weights
from open_autoglm.storage import replacing, write_atomic

WEIGHTS: Final = ("float32", "int8", "int4")


def write_onnx(folder_in: Path, path_out: Path, *, weights: str = "float32") -> None:
    """Write the checkpoint in `folder_in` as `path_out` and, for the weights, `path_out` with `.data` appended.

    folder_in: a bundle or a checkpoint in the Hugging Face layout. weights: `float32`, `int8` (those that a build
    left, or rounded by row) or `int4` (those of an AWQ or GPTQ checkpoint, or rounded by groups of 32). The inputs and
    outputs are those of `open_autoglm.models.onnx.signature`, whose text is in the file. float32 and int8 use ONNX's
    own operators, int4 also ONNX Runtime's `MatMulNBits`. On x86 without VNNI, ONNX Runtime multiplies int8 exactly
    only with the session entry `session.x64quantprecision=1`.
    Tensors are written one after the other, so that the memory taken is that of the largest few.
    Raises CheckpointError for the checkpoint or unknown weights, StorageError when the disk refuses.
    """
    if weights not in WEIGHTS:
        raise CheckpointError(f"unknown weights '{weights}'; choose one of: {', '.join(WEIGHTS)}")
    data_path = path_out.with_name(f"{path_out.name}.data")
    with open_weights(folder_in, int8=weights == "int8", int4=weights == "int4") as reader:
        with replacing(data_path) as temporary, temporary.open("wb") as data:
            graph = GraphWriter(data, data_path.name)
            write_decoder(graph, reader, weights)
        config = reader.config
    model = graph.model(config.architecture, signature.__doc__ or "", {"config": config.to_dict(), "weights": weights})
    write_atomic(path_out, model.SerializeToString())
