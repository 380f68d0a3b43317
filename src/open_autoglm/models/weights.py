# SPDX-License-Identifier: Apache-2.0
"""The weights of a checkpoint under transformers' names, whatever the layout of its files; without PyTorch.

Layouts: transformers' Glm, Glm4 and Glm4Moe (experts apart or stacked), ChatGLM's own with fused query, key and value,
each in one safetensors file or many, in float32, float16 or bfloat16, or with its linear layers packed by AutoAWQ, GPTQ
or compressed-tensors; and the `int8.safetensors` and `int4.safetensors` of a bundle. Nothing is unpickled and no code
of a checkpoint is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from open_autoglm.errors import CheckpointError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.mapped_tensors import MappedTensors
from open_autoglm.models.model_folder import CONFIG_FILE, INT4_FILE, INT8_FILE, read_config, weight_files
from open_autoglm.models.packed_layouts import PackedLayout, read_packed_layout, unpack_layer
from open_autoglm.models.tensor_names import Place, is_ignored, place_of, stored_shape, tensor_shapes
from open_autoglm.models.weight_types import DenseWeight, Int4Weight, Int8Weight, rows_of

__all__ = ["DenseWeight", "Int4Weight", "Int8Weight", "WeightReader", "open_weights"]

_FLOATS: Final = ("F32", "F16", "BF16")
_ENOUGH: Final = 10_000
"""Tensors missing after which nobody looks for more: a config.json can claim any number."""


def open_weights(folder: Path, *, int8: bool = False, int4: bool = False) -> WeightReader:
    """Open a checkpoint for reading and check that its files have every tensor, in the right shape, and no other.

    int8, int4: read the `int8.safetensors` or `int4.safetensors` that a build left, where there is one; otherwise the
    weights as they are.
    Raises CheckpointError, with the tensor or file at fault.
    """
    config, layout = read_config(folder)
    if int8 and (folder / INT8_FILE).is_file():
        return WeightReader(config, [folder / INT8_FILE], is_int8=True)
    if int4 and (folder / INT4_FILE).is_file():
        return WeightReader(config, [folder / INT4_FILE], layout=_layout_of(folder / INT4_FILE), is_int4=True)
    return WeightReader(config, weight_files(folder), layout=layout)


class WeightReader:
    """The weights of one checkpoint; a context manager. Arrays that it gave stay valid after it is closed.

    config: the model's. layout: how rounded layers are packed, None when there are none. is_int8, is_int4: it reads an
    `int8.safetensors` or `int4.safetensors`, whose embeddings are in int8. Use `open_weights` to make one.
    """

    def __init__(
        self,
        config: ModelConfig,
        files: list[Path],
        *,
        layout: PackedLayout | None = None,
        is_int8: bool = False,
        is_int4: bool = False,
    ) -> None:
        self.config, self.layout, self.is_int8, self.is_int4 = config, layout, is_int8, is_int4
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._source = str(files[0] if len(files) == 1 else files[0].parent)
        self._files: list[MappedTensors] = []
        self._file_of: dict[str, MappedTensors] = {}
        try:
            for path in files:
                self._add(MappedTensors(path))
            self._check()
        except BaseException:
            self.close()
            raise

    def names(self) -> tuple[str, ...]:
        """Every tensor of the model by its transformers name, `MODULE.weight` for an int8 or int4 layer too.

        A tied `lm_head.weight` is not among them: it is `model.embed_tokens.weight`.
        """
        return tuple(self._shapes)

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of that transformers name, such as a `q_proj.bias`."""
        return name in self._shapes or (name == "lm_head.weight" and self.config.tie_word_embeddings)

    def dense(self, name: str) -> DenseWeight:
        """A tensor by its full name: norms, biases, embeddings, the router.

        Raises CheckpointError for a name that the model does not have, and for a tensor that is not in floating
        point: `linear` gives those.
        """
        module, part, shape = self._split(name)
        place = place_of(module, self.config, self._file_of)
        stored = place.tensor(part)
        file = self._file_of.get(stored)
        if file is None:
            bits = 4 if self.layout is None else self.layout.bits
            raise CheckpointError(
                f"{self._source}: {name} is not in floating point but in {bits} bits; read it as a layer"
            )
        dtype = file.entries[stored].dtype
        if dtype not in _FLOATS:
            raise CheckpointError(f"{file.path}: {stored} has type {dtype}, which is not a floating-point type we read")
        return DenseWeight(_part(file.array(stored), place).reshape(shape), is_bfloat16=dtype == "BF16")

    def linear(self, name: str) -> DenseWeight | Int8Weight | Int4Weight:
        """The matrix of a linear layer or embedding by its module name, in the form in which it is stored.

        name: such as `model.layers.0.self_attn.q_proj`; a tied `lm_head` is the embedding.
        Raises CheckpointError for a name that the model does not have and for int4 parts that do not fit together.
        """
        module, _, shape = self._split(f"{name}.weight")
        if f"{module}.scale" in self._file_of:
            return Int8Weight(self._array(f"{module}.weight"), self._array(f"{module}.scale"))
        place = place_of(module, self.config, self._file_of)
        layout = self.layout
        if layout is None or place.tensor(layout.codes) not in self._file_of:
            return self.dense(f"{module}.weight")
        parts = {part: self._array(tensor) for part in layout.parts if (tensor := place.tensor(part)) in self._file_of}
        if layout.scales in parts:
            stored = place.tensor(layout.scales)
            is_bfloat16 = self._file_of[stored].entries[stored].dtype == "BF16"
            parts[layout.scales] = DenseWeight(parts[layout.scales], is_bfloat16=is_bfloat16).float32()
        whole = unpack_layer(layout, parts, stored_shape(place, shape, self.config), place.module)
        return whole if place.rows is None else rows_of(whole, place.rows)

    def forget_pages(self) -> None:
        """Give back the memory of what was read so far; it is read again when it is looked at again."""
        for file in self._files:
            file.forget_pages()

    def close(self) -> None:
        """Let the files go."""
        for file in self._files:
            file.close()

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, file: MappedTensors) -> None:
        self._files.append(file)
        for name in file.entries:
            if name in self._file_of:
                raise CheckpointError(f"{file.path}: {name} is in {self._file_of[name].path.name} too")
            self._file_of[name] = file

    def _array(self, stored: str) -> np.ndarray:
        return self._file_of[stored].array(stored)

    def _split(self, name: str) -> tuple[str, str, tuple[int, ...]]:
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            name = "model.embed_tokens.weight"
        if name not in self._shapes:
            raise CheckpointError(f"{self._source}: the model has no tensor {name}")
        module, _, part = name.rpartition(".")
        return module, part, self._shapes[name]

    def _check(self) -> None:
        """Every tensor of the model is stored in the right shape, and nothing else is."""
        used: set[str] = set()
        missing: list[str] = []
        for name, shape in tensor_shapes(self.config):
            self._shapes[name] = shape
            module, _, part = name.rpartition(".")
            place = place_of(module, self.config, self._file_of)
            stored = place.tensor(part)
            if part == "weight" and self.layout is not None and place.tensor(self.layout.codes) in self._file_of:
                used.update(place.tensor(item) for item in self.layout.parts)
                required = map(place.tensor, self.layout.required)
                missing += [item for item in required if item not in self._file_of]
            elif stored not in self._file_of:
                missing.append(stored)
            elif (self.is_int8 or self.is_int4) and part == "weight" and f"{module}.scale" in self._file_of:
                used |= {stored, f"{module}.scale"}
                self._check_shape(stored, shape, ("I8",))
                self._check_shape(f"{module}.scale", shape[:1], ("F32",))
            else:
                used.add(stored)
                self._check_shape(stored, stored_shape(place, shape, self.config), _FLOATS)
            if len(missing) >= _ENOUGH:
                break
        if missing:
            raise CheckpointError(f"{self._source}: the tensor {missing[0]} is missing ({len(missing)} in all)")
        unknown = sorted(
            name
            for name in set(self._file_of) - used
            if not is_ignored(name, self.config) and not self._is_empty_bias(name)
        )
        if unknown:
            raise CheckpointError(f"{self._source}: the tensor {unknown[0]} is not part of this architecture")

    def _is_empty_bias(self, stored: str) -> bool:
        """GPTQ tools give every packed layer a bias, zero where the model has none."""
        module, _, part = stored.rpartition(".")
        is_packed = self.layout is not None and f"{module}.{self.layout.codes}" in self._file_of
        return part == "bias" and is_packed and not self._array(stored).any()

    def _check_shape(self, stored: str, shape: tuple[int, ...], types: tuple[str, ...]) -> None:
        entry = self._file_of[stored].entries[stored]
        if entry.shape != shape or entry.dtype not in types:
            raise CheckpointError(
                f"{self._file_of[stored].path}: {stored} is {entry.dtype}{list(entry.shape)}, {CONFIG_FILE} asks for "
                f"{' or '.join(types)} {list(shape)}"
            )


def _part(array: np.ndarray, place: Place) -> np.ndarray:
    if place.expert is not None:
        array = array[place.expert]
    return array if place.rows is None else array[place.rows]


def _layout_of(path: Path) -> PackedLayout:
    """How the file of rounded weights that a build left is packed, from its own header."""
    file = MappedTensors(path)
    file.close()
    try:
        return read_packed_layout(json.loads(file.metadata["quantization_config"]))
    except (KeyError, ValueError, RecursionError):
        raise CheckpointError(f"{path} does not say how it is packed; build the model again") from None
