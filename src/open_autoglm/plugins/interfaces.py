# SPDX-License-Identifier: Apache-2.0
"""What can be replaced by a plugin: one small interface for each kind.

A plugin is a class that can be made without arguments; what it needs to know comes with the calls. Only a stage is
made by the pipeline, with its settings (`open_autoglm.pipeline.stage` says how), and may be a plain function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


class Chunks(Iterator[Mapping[str, Any]], Protocol):
    """The chunks of a streamed answer, in order."""

    def close(self) -> None:
        """Stop the answer: the model computes no more of it."""
        ...


class Chat(Protocol):
    """The served models, as the caller of a request may use them. Made for one request, and only good while it runs."""

    def __call__(self, body: Mapping[str, Any]) -> Any:
        """Ask a model. body: that of `POST /v1/chat/completions`, with the same fields, limits and quotas.

        Returns the chat completion, a dictionary; with `"stream": True` its `Chunks`, once the first token is there.
        Raises what the server refuses as `open_autoglm.serve.error_shape.HttpError`: a `RequestError` with the `status`
        that it would have, so such as 400, 403, 404, 429 or 503; the iterator does too. If the client has gone, raises
        an exception that is no `Exception`, so that it ends the plugin's work like `KeyboardInterrupt` would.
        """
        ...

    def models(self) -> Sequence[str]:
        """The names of the models that the caller may ask, the default first."""
        ...


class ProtocolPlugin(Protocol):
    """Answers requests of another protocol over HTTP; `serve --protocol NAME` takes it, below the path `/NAME`."""

    def answer(self, request: Mapping[str, Any], chat: Chat) -> Mapping[str, Any]:
        """The answer to a request. Is called by several threads at one time, a thread of its own for each request.

        request: `method`; `path`, what follows `/NAME`, beginning with '/'; `query`, the last value of each name;
        `headers`, names in small letters, without keys and cookies; `body`, bytes.
        Returns `body`: bytes, a text, or an iterable of those, which is sent as it comes, and closed if the client
        leaves; and if wanted `status` (200), `content_type` (`application/json`) and `headers`, texts by name.
        Whatever it raises is an answer too: an HttpError of `chat` in OpenAI's shape, anything else a 500. An iterable
        may raise so before it has given anything; after that the connection is cut.
        """
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
