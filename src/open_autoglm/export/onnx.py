# SPDX-License-Identifier: Apache-2.0
"""A model as a folder with `model.onnx`, its weights beside it, and the files that programs for generation read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.export.companions import copy_papers, write_configuration, write_tokenizer_files
from open_autoglm.export.destination import new_folder
from open_autoglm.export.source import Source
from open_autoglm.models.weights import open_weights
from open_autoglm.storage import explained, write_atomic

PRECISIONS: Final = ("float32", "int4")
MODEL_FILE: Final = "model.onnx"
DATA_FILE: Final = "model.onnx.data"

Progress = Callable[[int, int], None]


def export_onnx(
    source: Source,
    out: Path,
    *,
    precision: str = "float32",
    force: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the model as the folder `out` and return what was written, JSON-ready.

    precision: `float32`, with ONNX's own operators (opset 23) but for layers that come in 4 bits, or `int4`: linear
    layers by ONNX Runtime's `MatMulNBits`, with the codes that a build or a tool left or else rounded in groups of 32,
    the embedding and the output matrix in 8 bits by row. Inputs and outputs are those of
    `open_autoglm.export.onnx_graph`.
    on_progress: told how many of how many layers are written.
    Raises ConfigurationError for `out` or another argument, CheckpointError for the model, StorageError when the disk
    refuses.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(f"unknown --precision '{precision}'; choose one of: {', '.join(PRECISIONS)}")
    try:
        from open_autoglm.export.onnx_graph import __doc__ as documentation
        from open_autoglm.export.onnx_graph import write_graph
        from open_autoglm.models.onnx.graph import OPSET, GraphWriter
    except ModuleNotFoundError as missing:
        if missing.name != "onnx":
            raise
        raise ConfigurationError(
            "ONNX is written by the library onnx, which is not installed; run: pip install 'open-autoglm[onnx]'"
        ) from None
    config = source.config
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic":
        raise CheckpointError(
            f"{source.folder}: RoPE scaling of type 'dynamic' changes with the length of the context, which the graph "
            "does not compute; --format huggingface keeps it"
        )
    bytes_each = 4.0 if precision == "float32" else 0.65
    size = int(config.num_decoder_parameters() * bytes_each) + config.vocab_size * config.hidden_size * (
        8 if precision == "float32" else 2
    )
    record = {"format": "onnx", "model": source.name, "precision": precision}
    with (
        open_weights(source.folder, int4=precision == "int4") as reader,
        new_folder(out, source.folder, size, record, force=force) as folder,
    ):
        with explained(out, "write"), (folder / DATA_FILE).open("wb") as data:
            graph = GraphWriter(data, DATA_FILE)
            write_graph(graph, reader, precision, on_progress)
        described = {"config": config.to_dict(), "precision": precision, "model": source.name}
        model = graph.model(config.architecture, documentation or "", described)
        write_atomic(folder / MODEL_FILE, model.SerializeToString())
        notes = write_tokenizer_files(source, folder)
        copy_papers(source, folder)
        write_configuration(source, folder, "float32")
    return {
        "format": "onnx",
        "folder": str(out),
        "precision": precision,
        "opset": OPSET,
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        "notes": notes,
    }
