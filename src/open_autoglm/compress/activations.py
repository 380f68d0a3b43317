# SPDX-License-Identifier: Apache-2.0
"""What a decoder layer sees of the calibration data: its hidden states, in a file, and the moments of its inputs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from open_autoglm.errors import DataError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import DecoderLayer, PackedSequences
from open_autoglm.models.rotary_embedding import rotary_tables
from open_autoglm.models.weight_types import DenseWeight
from open_autoglm.storage import explained, replacing

_BATCH_TOKENS: Final = 4096


class _Enough(Exception):  # noqa: N818 - it ends a forward pass, which is no error
    """Ends a forward pass where nothing after it is wanted."""


@dataclass
class InputMoments:
    """Sums over the inputs of a linear layer.

    hessian: float32[inputs, inputs], of x x^T, or its diagonal float32[inputs]. magnitudes: float32[inputs], of |x|.
    drift: float32[inputs, inputs], of (e - x) x^T, where e is what the exact model has in the place of x; None where
    that is not known.
    """

    hessian: Tensor
    magnitudes: Tensor
    tokens: int = 0
    drift: Tensor | None = None

    @classmethod
    def zero(cls, inputs: int, *, whole: bool = True, drift: bool = False) -> InputMoments:
        """Of no inputs yet. whole: keep the whole Hessian. drift: keep the drift, too."""
        hessian = torch.zeros((inputs, inputs) if whole else (inputs,))
        return cls(hessian, torch.zeros(inputs), drift=torch.zeros(inputs, inputs) if drift else None)

    def add(self, values: Tensor, exact: Tensor | None = None) -> None:
        """Count inputs. values, exact: float32[..., inputs], what the layer sees and what the exact model's sees."""
        flat = values.flatten(0, -2)
        if self.drift is not None and exact is not None:
            self.drift.addmm_((exact.flatten(0, -2) - flat).T, flat)
        if self.hessian.dim() == 2:
            self.hessian.addmm_(flat.T, flat)
        else:
            self.hessian += flat.square().sum(dim=0)
        self.magnitudes += flat.abs().sum(dim=0)
        self.tokens += len(flat)

    @property
    def diagonal(self) -> Tensor:
        """float32[inputs]: the sum of x^2."""
        return self.hessian.diagonal() if self.hessian.dim() == 2 else self.hessian


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states of the calibration's tokens before one layer, float32[tokens, hidden_size], in a file.

    Read some sequences at a time and never mapped, so that they take no memory beyond that.
    """

    path: Path
    lengths: np.ndarray
    width: int
    batches: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", list(_batches(self.lengths)))

    def read(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Sequences `first` to `last` - 1: their states, end to end, and their lengths."""
        start, count = int(self.lengths[:first].sum()), int(self.lengths[first:last].sum())
        with explained(self.path, "read"), self.path.open("rb") as file:
            file.seek(4 * self.width * start)
            values = np.fromfile(file, dtype=np.float32, count=count * self.width)
        return torch.from_numpy(values).view(count, self.width), torch.from_numpy(self.lengths[first:last].copy())

    @contextlib.contextmanager
    def written(self) -> Iterator[Any]:
        """A file to write the states to, in order; it is there whole or not at all."""
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            yield file


def _batches(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Sequences in order, in runs of about so many tokens."""
    first, tokens = 0, 0
    for index, length in enumerate(lengths):
        if tokens and tokens + length > _BATCH_TOKENS:
            yield first, index
            first, tokens = index, 0
        tokens += int(length)
    if tokens:
        yield first, len(lengths)


class LayerRunner:
    """Runs one decoder layer over the calibration's hidden states."""

    def __init__(self, layer: DecoderLayer, states: HiddenStates, config: ModelConfig) -> None:
        self._layer, self._states, self._config = layer, states, config

    def twin(self, states: HiddenStates) -> LayerRunner:
        """A runner of a copy of the layer as it is now, over other hidden states of the same tokens."""
        return LayerRunner(copy.deepcopy(self._layer), states, self._config)

    @torch.no_grad()
    def watch(self, moments: dict[str, InputMoments], stop: str, exact: LayerRunner | None = None) -> None:
        """Add up the inputs of the linear layers named in `moments`, and stop each pass before the layer `stop`.

        exact: runs the same tokens through the exact layer, for those whose drift is asked for.
        """
        drifting = [name for name, counted in moments.items() if counted.drift is not None]
        for first, last in self._states.batches:
            meant = exact._inputs(drifting, stop, first, last) if exact is not None and drifting else {}
            for name, values in self._inputs(moments, stop, first, last).items():
                moments[name].add(values, meant.get(name))

    def _inputs(self, names: Iterable[str], stop: str, first: int, last: int) -> dict[str, Tensor]:
        """What the linear layers of these names get as input for a run of sequences; those that get nothing are left
        out."""
        seen: dict[str, Tensor] = {}
        handles = [self._layer.get_submodule(name).register_forward_pre_hook(_keeper(seen, name)) for name in names]
        handles.append(self._layer.get_submodule(stop).register_forward_pre_hook(_end))
        try:
            with contextlib.suppress(_Enough):
                self._forward(first, last)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    @torch.no_grad()
    def write_outputs(self, target: HiddenStates) -> None:
        """Compute the layer and write its output, the hidden states before the next layer."""
        with target.written() as file:
            for first, last in self._states.batches:
                self._forward(first, last).numpy().tofile(file)

    @torch.no_grad()
    def largest_cached(self) -> tuple[float, float]:
        """The largest absolute number among the keys, and among the values, that a KV cache would hold."""
        seen = [0.0, 0.0]
        handle = self._layer.get_submodule("self_attn.o_proj").register_forward_pre_hook(_end)
        try:
            for first, last in self._states.batches:
                with contextlib.suppress(_Enough):
                    self._forward(first, last, seen)
        finally:
            handle.remove()
        return seen[0], seen[1]

    @torch.no_grad()
    def block(self, name: str) -> Callable[[], Tensor]:
        """The layer's block of that name, to be run on its inputs in the first few thousand tokens, again and again."""
        module = self._layer.get_submodule(name)
        seen: list[Any] = []

        def keep(module: nn.Module, inputs: Sequence[Any]) -> None:
            del module
            seen.extend(inputs)
            raise _Enough

        handle = module.register_forward_pre_hook(keep)
        try:
            with contextlib.suppress(_Enough):
                self._forward(*self._states.batches[0])
        finally:
            handle.remove()

        @torch.no_grad()
        def run() -> Tensor:
            return module(*seen)

        return run

    def _forward(self, first: int, last: int, cached: list[float] | None = None) -> Tensor:
        """cached: is raised to the largest absolute key and value, if given."""
        hidden, lengths = self._states.read(first, last)
        attention = PackedSequences(lengths) if cached is None else _WatchedCache(lengths, cached)
        rotary = rotary_tables(attention.positions, attention.lengths, self._config)
        return self._layer(hidden, rotary, attention)


class _WatchedCache(PackedSequences):
    """Attention that notes how large the keys, turned by RoPE, and the values become."""

    def __init__(self, lengths: Tensor, seen: list[float]) -> None:
        super().__init__(lengths)
        self._seen = seen

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for place, held in enumerate((key, value)):
            self._seen[place] = max(self._seen[place], float(held.abs().max()))
        return super().__call__(layer, query, key, value)


def write_embedded(table: DenseWeight, token_ids: np.ndarray, target: HiddenStates) -> None:
    """Write the embeddings of the calibration's tokens. table: [vocab_size, hidden_size], mapped.

    Raises DataError for a token that the model does not have.
    """
    if len(token_ids) and int(token_ids.max()) >= table.shape[0]:
        raise DataError(
            f"the tokenizer has token {int(token_ids.max())}, but the model's vocabulary ends at {table.shape[0] - 1}; "
            "they do not belong together"
        )
    with target.written() as file:
        for start in range(0, len(token_ids), _BATCH_TOKENS):
            rows = table.values[token_ids[start : start + _BATCH_TOKENS]]
            DenseWeight(rows, table.is_bfloat16).float32().tofile(file)


def _keeper(seen: dict[str, Tensor], name: str) -> Any:
    def keep(module: nn.Module, inputs: Sequence[Tensor]) -> None:
        del module
        seen[name] = inputs[0]

    return keep


def _end(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    del module, inputs
    raise _Enough
