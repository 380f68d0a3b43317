# SPDX-License-Identifier: Apache-2.0
"""`retrieve`: the passages of documents that fit each record best."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.passage_index import PassageIndex, write_index
from open_autoglm.pipeline.stages.passages import DocumentFiles, PassageCutter
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of, text_of, with_records
from open_autoglm.pipeline.stages.text_embedding import EmbedderConfig, TextEmbedder, open_embedder
from open_autoglm.storage import FolderLock, explained

_FORMAT: Final = 1
_DEPTH: Final = 100
"""Passages of each order that a hybrid puts together."""

_RANK: Final = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher 2009)."""

_PATIENCE: Final = 3600.0


class RetrieveConfig(BaseModel):
    """documents: a file of JSON lines (`text`, `id`), or a folder of .txt, .md, .rst, .html and .jsonl files. index:
    the folder for the index, DOCUMENTS.index if not given; made anew when a document or one of these settings changes.

    by: the words (BM25), the meaning (embeddings, by `embedder`), or both orders put together. input: the field with
    the question; the only text of a record if not given. output: gets a list of `id`, `document`, `text`, `score` and
    `rank`. into: a field that gets the passages, numbered, and below them the question: what a model is asked.
    least_score: of passages that count; of BM25, a cosine, or of a hybrid at most 0.033.
    """

    model_config = ConfigDict(extra="forbid")

    documents: Path
    index: Path | None = None
    text: str = "text"
    id: str = "id"
    by: Literal["words", "embeddings", "both"] = "words"
    embedder: EmbedderConfig | None = None
    words: int = Field(default=200, ge=8, le=10_000, description="Of a passage at most.")
    overlap: int = Field(default=40, ge=0, description="Words that two neighbouring passages share.")
    most: int = Field(default=4, ge=1, le=100, description="Passages for each record.")
    least_score: float | None = None
    input: str | None = None
    output: str = "passages"
    into: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> RetrieveConfig:
        if (self.by == "words") != (self.embedder is None):
            raise ValueError("embeddings need an embedder with a model, and by: words needs none")
        if self.overlap >= self.words:
            raise ValueError("neighbouring passages cannot share all their words; make 'overlap' smaller than 'words'")
        return self


class Retrieve:
    """The index is kept open and looked at anew for each packet: changed documents count from the next packet on."""

    config_model = RetrieveConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: RetrieveConfig) -> None:
        self._config = config
        self._embedder: TextEmbedder | None = None if config.embedder is None else open_embedder(config.embedder)
        self._folder = config.index or config.documents.with_name(config.documents.name + ".index")
        self._signs: list[tuple[str, int, int]] | None = None
        self._index: PassageIndex | None = None

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with passages in each record."""
        config = self._config
        found = DocumentFiles.find(config.documents)
        index = self._current(found, context)
        records = [dict(record) for record in records_of(packet)]
        questions = [text_of(record, config.input) for record in records]
        vectors: Any = [None] * len(questions)
        if self._embedder is not None and questions:
            try:
                vectors = self._embedder.embed(questions)
            except PipelineError as error:
                names = f"{name_of(records[0])} to {name_of(records[-1])}"
                raise PipelineError(f"a question of {names} cannot be embedded: {error}") from None
        for record, question, vector in zip(records, questions, vectors, strict=True):
            passages = self._search(index, question, vector)
            record[config.output] = passages
            if config.into is not None:
                record[config.into] = asked_with(passages, question)
        retrieval = {"passages": index.num_passages, "left_out": [str(path) for path in found.left_out]}
        return with_records(packet, context, records, retrieval=retrieval)

    def _search(self, index: PassageIndex, question: str, vector: Any) -> list[dict[str, Any]]:
        config = self._config
        depth = config.most if config.by != "both" else max(config.most, _DEPTH)
        orders = [index.by_words(question, depth)] if config.by != "embeddings" else []
        if vector is not None:
            orders.append(index.by_vector(vector, depth))
        ranked = orders[0] if len(orders) == 1 else fused(orders)
        passages: list[dict[str, Any]] = []
        for rank, (number, score) in enumerate(ranked[: config.most], 1):
            if config.least_score is not None and score < config.least_score:
                break
            passage = index.passage(number)
            passages.append(
                {"id": passage.id, "document": passage.document, "text": passage.text, "score": score, "rank": rank}
            )
        return passages

    def _current(self, found: DocumentFiles, context: StageContext) -> PassageIndex:
        """The index of the documents as they are."""
        signs = found.signs()
        if self._index is not None and signs == self._signs:
            return self._index
        path = self._folder / f"{self._settings()}-{found.digest()[:24]}.sqlite"
        if not path.is_file():
            with explained(self._folder, "write"):
                self._folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self._folder)
            lock.acquire(patience=min(_PATIENCE, context.seconds_left()))
            try:
                if not path.is_file():
                    self._write(path, found, context)
            finally:
                lock.release()
        if self._index is not None:
            self._index.close()
        self._index, self._signs = PassageIndex(path), signs
        return self._index

    def _write(self, path: Path, found: DocumentFiles, context: StageContext) -> None:
        config = self._config
        cutter = PassageCutter(config.words, config.overlap, config.text, config.id)
        older = sorted(self._folder.glob(f"{self._settings()}-*.sqlite"), key=lambda file: file.stat().st_mtime)
        for file in found.left_out:
            context.log.warning("%s is left out: it is of no kind that is read", file)
        embed = None if self._embedder is None else self._embedder.embed
        count = write_index(path, cutter.passages(found), embed, older[-1] if older else None)
        context.log.info("%s: index of %d files, %d passages embedded", path, len(found.files), count)
        for file in older:  # who still reads one keeps what is open
            file.unlink(missing_ok=True)

    def _settings(self) -> str:
        """Of the settings that the index depends on."""
        config = self._config
        chosen = [_FORMAT, str(config.documents.resolve()), config.text, config.id, config.words, config.overlap]
        identity = None if self._embedder is None else self._embedder.identity
        return hashlib.sha256(json.dumps([*chosen, identity]).encode()).hexdigest()[:16]


def fused(orders: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Several orders as one, by reciprocal rank fusion: the sum of 1 / (60 + rank) over the orders."""
    scores: dict[int, float] = {}
    for order in orders:
        for rank, (number, _) in enumerate(order, 1):
            scores[number] = scores.get(number, 0.0) + 1.0 / (_RANK + rank)
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))


def asked_with(passages: Sequence[dict[str, Any]], question: str) -> str:
    """Passages, each with its number in brackets, and the question below them; the question alone if there are none."""
    return "\n\n".join([*(f"[{number}] {one['text']}" for number, one in enumerate(passages, 1)), question])
