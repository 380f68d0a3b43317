# SPDX-License-Identifier: Apache-2.0
"""What can be replaced by a plugin: one small interface for each kind.

A plugin is a class that can be made without arguments; what it needs to know comes with the calls. Only a stage is
made by the pipeline, with its settings (`open_autoglm.pipeline.stage` says how), and may be a plain function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import numpy as np

Record = Mapping[str, Any]
"""A row of data: JSON values by name."""


class Reader(Protocol):
    """Reads a format of files. suffixes: of the files that it reads, such as `.xyz`."""

    suffixes: Sequence[str]

    def read(self, path: Path) -> Iterable[Record]:
        """The file's rows, in order. Raises DataError or ValueError that says the line."""
        ...


class Source(Protocol):
    """Brings records from somewhere else, each once."""

    def connect(self, config: Mapping[str, Any]) -> None:
        """Open what the settings name."""
        ...

    def fetch(self, cursor: Any) -> tuple[Iterable[Record], Any]:
        """The records after `cursor` (None: from the start) and the cursor, a JSON value, to go on from."""
        ...

    def preprocess(self, records: Iterable[Record]) -> Iterable[Record]:
        """The records as the stages are to have them."""
        ...


class Cleaner(Protocol):
    """Cleans texts."""

    def clean(self, text: str) -> str:
        """The clean text; cleaning it again changes nothing."""
        ...


class TokenizerPlugin(Protocol):
    """Makes token ids of texts, and back."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text's tokens."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; of those of `encode`, the same text."""
        ...


class BackendPlugin(Protocol):
    """Computes a model."""

    def load(self, folder: Path, dtype: str) -> Any:
        """An object of the engine's `Backend` interface for the model in a folder."""
        ...


class Quantizer(Protocol):
    """Rounds weights to fewer bits."""

    def quantize(self, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """float32[rows, columns] -> arrays by name."""
        ...

    def dequantize(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """The arrays of `quantize` -> float32[rows, columns]."""
        ...


class SamplerPlugin(Protocol):
    """Chooses tokens."""

    def choose(self, logits: np.ndarray, seed: int) -> int:
        """float32[vocabulary] -> the id of a token; the same seed chooses the same."""
        ...


class StagePlugin(Protocol):
    """A stage of pipelines."""

    def invoke(self, packet: Any, context: Any) -> Any:
        """A packet in, a packet or several out."""
        ...


class MetricPlugin(Protocol):
    """Scores answers. higher_is_better: whether a larger score is the better one."""

    higher_is_better: bool

    def score(self, answers: Sequence[str], references: Sequence[str]) -> float:
        """The score of answers, each beside the right one."""
        ...


class Sink(Protocol):
    """Takes records to somewhere else."""

    def connect(self, config: Mapping[str, Any]) -> None:
        """Open what the settings name."""
        ...

    def write(self, records: Iterable[Record], key: str) -> int:
        """Write records and say how many; what comes again under the same key must not be there twice."""
        ...


class ProtocolPlugin(Protocol):
    """Adds a way to talk to the server."""

    def mount(self, app: Any) -> None:
        """Add routes to the server's Starlette application."""
        ...


KINDS: Final[dict[str, type]] = {
    "reader": Reader,
    "source": Source,
    "cleaner": Cleaner,
    "tokenizer": TokenizerPlugin,
    "backend": BackendPlugin,
    "quantizer": Quantizer,
    "sampler": SamplerPlugin,
    "stage": StagePlugin,
    "metric": MetricPlugin,
    "sink": Sink,
    "protocol": ProtocolPlugin,
}
"""Kind -> its interface."""


def methods_of(kind: str) -> dict[str, int]:
    """The methods of a kind's interface, and with how many arguments, without self, each is called."""
    return {
        name: member.__code__.co_argcount - 1
        for name, member in vars(KINDS[kind]).items()
        if callable(member) and not name.startswith("_")
    }


def attributes_of(kind: str) -> tuple[str, ...]:
    """The attributes that a kind's interface has beside its methods."""
    return tuple(vars(KINDS[kind]).get("__annotations__", {}))
