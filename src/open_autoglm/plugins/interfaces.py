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
    """Reads a format of files that we do not know. suffixes: of the files that it reads, such as `.xyz`."""

    suffixes: Sequence[str]

    def read(self, path: Path) -> Iterable[Record]:
        """The file's rows, in order. Raises DataError or ValueError that says the line."""
        ...


class Source(Protocol):
    """Brings records from somewhere else: the stage `source` of a pipeline takes it."""

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
    """Cleans texts: the stage `text_cleaner` takes it."""

    def clean(self, text: str) -> str:
        """The clean text; cleaning it again changes nothing."""
        ...


class TokenizerPlugin(Protocol):
    """Makes the tokenizer of a model that is built; `build --tokenizer NAME` takes it."""

    def train(self, texts: Sequence[str], vocab_size: int) -> str:
        """A `tokenizer.json`, as the library `tokenizers` writes it, made for the texts of the training split.

        vocab_size: its tokens, at most. It gives every text back as it was. The control tokens of GLM's chat format
        are added to it.
        """
        ...


class BackendPlugin(Protocol):
    """Computes a model; `--backend NAME` takes it."""

    def load(self, folder: Path, options: Mapping[str, Any]) -> Any:
        """An object of the engine's `Backend` interface for the model in a folder.

        options: `weights`, `dtype`, `kv_dtype` and `threads`, as `open_autoglm.engine.backends.load_backend` has them.
        """
        ...


class Quantizer(Protocol):
    """Rounds a matrix to few bits; `quantize --method NAME` takes it, in the layouts that the engines read."""

    def quantize(self, weights: np.ndarray, bits: int, group_size: int) -> Mapping[str, np.ndarray]:
        """float32[rows, columns] -> `codes`, `scales` and `zeros`, where a weight is (code - zero) * scale.

        bits: 4 or 8. group_size: columns that share a scale, a divisor of their number. codes: uint8[rows, columns],
        less than 2**bits; scales: float32[rows, groups]; zeros: whole numbers from 1, [rows, groups]. What is asked for
        as symmetric has the middle, 2**(bits - 1), as every zero, and is refused otherwise.
        """
        ...


class SamplerPlugin(Protocol):
    """Proposes what a search tries next; `build --sampler NAME` takes it."""

    def propose(
        self, parameters: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], seed: int
    ) -> Mapping[str, Any]:
        """A value for each parameter that applies; the same arguments propose the same.

        parameters: each has its `name`, and as a file of a space says it `integer`, `uniform` or `log_uniform` with two
        bounds, or `categorical` with its choices; perhaps a `step`, and `when`. trials: those that ended, with
        `parameters` and `value`, of which less is better.
        """
        ...


class StagePlugin(Protocol):
    """A stage of pipelines."""

    def invoke(self, packet: Any, context: Any) -> Any:
        """A packet in, a packet or several out."""
        ...


class MetricPlugin(Protocol):
    """Scores answers; `--metric NAME` takes it. higher_is_better: whether a larger score is the better one."""

    higher_is_better: bool

    def score(self, answers: Sequence[str], references: Sequence[str]) -> float:
        """The score of answers, each beside the right one."""
        ...


class Sink(Protocol):
    """Takes records to somewhere else: the stage `sink` of a pipeline takes it."""

    def connect(self, config: Mapping[str, Any]) -> None:
        """Open what the settings name."""
        ...

    def write(self, records: Iterable[Record], key: str) -> int:
        """Write records and say how many; what comes again under the same key must not be there twice."""
        ...


class Queue(Protocol):
    """Brings messages, each at least once, until it is acknowledged. The plugin's name is the scheme of its URLs."""

    def connect(self, config: Mapping[str, Any]) -> None:
        """Take the address: `server` (scheme and host), `path`, a list, `group`, `idle_seconds`, and `options`.

        Raises ConfigurationError for what the queue does not understand.
        """
        ...

    def receive(self) -> Iterable[tuple[str, bytes, int]]:
        """Some messages that are there now: an id that never changes, the body, and how often it was delivered.

        Does not wait long for one. What another worker took and left for `idle_seconds` comes too. Raises an
        OpenAutoGLMError when the queue is away, as the other methods do.
        """
        ...

    def keep(self, message_ids: Sequence[str]) -> None:
        """These are still being worked on: their idle time begins anew."""
        ...

    def acknowledge(self, message_id: str) -> None:
        """It is dealt with and never comes again."""
        ...

    def bury(self, message_id: str, reason: str) -> None:
        """It cannot be dealt with: put it where somebody can look at it, with the reason; it never comes again."""
        ...

    def close(self) -> None:
        """End the connection."""
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
    "queue": Queue,
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
