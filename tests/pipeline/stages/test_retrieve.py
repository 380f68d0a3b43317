# SPDX-License-Identifier: Apache-2.0
"""`embed` and `retrieve`: BM25 against its formula, embeddings against the engine's own, the index against changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.engine.tiny_bundle import LINES, make_bundle
from tests.serve.conftest import serving

from open_autoglm.engine import LLM
from open_autoglm.errors import DataError, PipelineError, StorageError
from open_autoglm.pipeline.stages.passage_index import terms_of
from open_autoglm.pipeline.stages.passages import PassageCutter
from open_autoglm.pipeline.stages.retrieve import fused

Invoke = Callable[..., dict[str, Any]]
TEXTS = {
    "refund": "A refund is paid within ten days, back to the card that was charged for the ticket.",
    "card": "A lost card is blocked at once. Call us, and a new card comes by post.",
    "hours": "We answer from nine to five on working days.",
    "北京": "北京的门店周末也营业，电话由客服接听。",
    "上海": "上海的门店周日不营业。",
    "parking": "Guests park behind the house; a place is four euros for each day.",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    rows = [json.dumps({"id": name, "text": text}, ensure_ascii=False) for name, text in TEXTS.items()]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def asked(invoke: Invoke, config: dict[str, Any], *questions: str) -> list[list[tuple[str, float]]]:
    records = [{"id": n, "question": question} for n, question in enumerate(questions)]
    found = invoke("retrieve", config, {"records": records})["records"]
    return [[(one["document"], one["score"]) for one in record["passages"]] for record in found]


def bm25(question: str) -> dict[str, float]:
    """By the formula of Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75."""
    terms = {name: list(terms_of(text)) for name, text in TEXTS.items()}
    mean = sum(map(len, terms.values())) / len(terms)
    scores: dict[str, float] = {}
    for term in set(terms_of(question)):
        holders = sum(term in words for words in terms.values())
        idf = max(1e-6, math.log((len(terms) - holders + 0.5) / (holders + 0.5)))
        for name, words in terms.items():
            if count := words.count(term):
                part = idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / mean))
                scores[name] = scores.get(name, 0.0) + part
    return scores


def test_words_are_ranked_by_bm25(invoke: Invoke, documents: Path) -> None:
    questions = ["When is my REFUND paid to the card?", "北京门店周末营业吗", "zebra", '"; drop OR NEAR(*)']
    found = asked(invoke, {"documents": str(documents), "most": 10}, *questions)
    for question, ranked in zip(questions, found, strict=True):
        assert dict(ranked) == pytest.approx(bm25(question))
        assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    assert [ranked[0][0] for ranked in found[:2]] == ["refund", "北京"]
    assert found[2:] == [[], []]
    records = {"records": [{"id": 1, "question": "lost card"}]}
    config = {"documents": str(documents), "most": 1, "into": "asked", "least_score": 0.1}
    record = invoke("retrieve", config, records)["records"][0]
    assert record["asked"] == f"[1] {TEXTS['card'][:-1]}.\n\nlost card"
    assert (record["passages"][0]["id"], record["passages"][0]["rank"]) == ("card#1", 1)


def test_the_index_follows_the_documents(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "more").mkdir(parents=True)
    (folder / "a.md").write_text("apples and pears")
    (folder / "more" / "b.html").write_text("<head><title>x</title></head><p>plums &amp; cherries</p>")
    (folder / "c.pdf").write_bytes(b"%PDF")
    config, records = {"documents": str(folder)}, {"records": [{"id": 1, "question": "cherries"}]}
    out = invoke("retrieve", config, records)
    assert [one["id"] for one in out["records"][0]["passages"]] == ["more/b.html#1"]
    assert out["retrieval"] == {"passages": 2, "left_out": [str(folder / "c.pdf")]}
    index = tmp_path / "docs.index"
    (first,) = index.glob("*.sqlite")
    kept = first.stat().st_ino
    invoke("retrieve", config, records)
    assert first.stat().st_ino == kept, "nothing changed"
    (folder / "a.md").write_text("apples and cherries")
    assert len(asked(invoke, config, "cherries")[0]) == 2
    (second,) = index.glob("*.sqlite")
    assert second != first
    (folder / "a.md").write_text("apples and pears")
    asked(invoke, config, "cherries")
    assert list(index.glob("*.sqlite")) == [first], "equal content has an equal name"
    first.write_bytes(b"no index at all, but long enough to look like one" * 100)
    with pytest.raises(StorageError, match="is no index of passages"):
        asked(invoke, config, "cherries")


def test_embeddings_are_the_engines_own(invoke: Invoke, bundle: Path, documents: Path) -> None:
    with LLM(bundle) as llm:
        expected = llm.embed(LINES)
        cosines = llm.embed(["a lost card"]) @ llm.embed(list(TEXTS.values())).T
    records = {"records": [{"id": n, "line": line} for n, line in enumerate(LINES)]}
    local = invoke("embed", {"model": str(bundle)}, records)["records"]
    assert np.allclose([one["embedding"] for one in local], expected, atol=1e-6)
    embedder = {"model": str(bundle)}
    config = {"documents": str(documents), "by": "embeddings", "embedder": embedder, "most": 6}
    found = asked(invoke, config, "a lost card")[0]
    assert dict(found) == pytest.approx(dict(zip(TEXTS, cosines[0].tolist(), strict=True)), abs=1e-5)
    both = asked(invoke, {**config, "by": "both"}, "a lost card")[0]
    words = [name for name, _ in asked(invoke, {"documents": str(documents), "most": 6}, "a lost card")[0]]
    meaning = [name for name, _ in found]
    scores = {
        name: 1 / (61 + meaning.index(name)) + (1 / (61 + words.index(name)) if name in words else 0) for name in TEXTS
    }
    assert dict(both) == pytest.approx(scores)
    with serving(bundle) as server:
        remote = invoke("embed", {"model": "tiny", "url": f"{server.url}/v1"}, records)["records"]
        assert np.allclose([one["embedding"] for one in remote], expected, atol=1e-5)
        config["embedder"] = {"model": "tiny", "url": f"{server.url}/v1"}
        assert dict(asked(invoke, config, "a lost card")[0]) == pytest.approx(dict(found), abs=1e-5)
    with pytest.raises(ConnectionError):
        invoke("embed", {"model": "tiny", "url": f"{server.url}/v1"}, records)


def test_a_text_that_has_no_embedding_says_so(invoke: Invoke, bundle: Path) -> None:
    records = {"records": [{"id": "long", "text": "word " * 3000}, {"id": "short", "text": "a"}]}
    with pytest.raises(PipelineError, match=r"record 'long' has no embedding: .*on_error: record"):
        invoke("embed", {"model": str(bundle)}, records)
    long, short = invoke("embed", {"model": str(bundle), "on_error": "record"}, records)["records"]
    assert (long["embedding"], short["error"]) == (None, None)
    assert "context" in long["error"]
    assert len(short["embedding"]) == 64


def test_only_new_passages_are_embedded_again(
    invoke: Invoke, bundle: Path, documents: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"documents": str(documents), "by": "embeddings", "embedder": {"model": str(bundle)}}
    with caplog.at_level("INFO", logger="test"):
        before = asked(invoke, config, "a card")[0]
        with documents.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": "new", "text": "zz"}) + "\n")
        after = asked(invoke, {**config, "most": 7}, "a card")[0]
    told = [record.getMessage().rpartition("files, ")[2] for record in caplog.records]
    assert told == ["6 passages embedded", "1 passages embedded"]
    same = {name: score for name, score in after if name != "new"}
    assert {name: same[name] for name, _ in before} == pytest.approx(dict(before), abs=1e-6)


def test_passages_cover_the_document_and_overlap(invoke: Invoke) -> None:
    cutter = PassageCutter(words=10, overlap=3, text="text", id="id")
    text = " ".join(f"w{n}" for n in range(25))
    parts = [part.split() for part in cutter.cut(text)]
    assert [part[0] for part in parts] == ["w0", "w7", "w14", "w21"][: len(parts)]
    assert parts[-1][-1] == "w24"
    assert all(len(part) <= 10 for part in parts)
    assert cutter.cut("好" * 12) == ["好" * 10, "好" * 5]
    assert cutter.cut(" \n ") == []
    assert fused([[(1, 9.0), (2, 8.0)], [(2, 1.0)]]) == [(2, 1 / 62 + 1 / 61), (1, 1 / 61)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: this is not JSON"),
        ('{"text": 1}', "line 2: a document must be a mapping with a text in 'text'"),
        ('{"text": "a", "id": "x"}', "line 2: the document 'x' was there before"),
        ('{"text": "a", "id": [1]}', "line 2: 'id' is no text or number"),
    ],
)
def test_documents_with_a_fault_are_named(invoke: Invoke, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "x", "text": "b"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        asked(invoke, {"documents": str(path)}, "a")
    assert not list(tmp_path.glob("d.jsonl.index/*.sqlite"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"by": "embeddings"}, "need an embedder"),
        ({"embedder": {"model": "x"}}, "need an embedder"),
        ({"words": 20, "overlap": 20}, "smaller than 'words'"),
        ({"by": "both", "embedder": {}}, "name a model"),
    ],
)
def test_settings_with_a_fault_are_refused(
    invoke: Invoke, documents: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        asked(invoke, {"documents": str(documents), **config}, "a")
    with pytest.raises(DataError, match="no documents at"):
        asked(invoke, {"documents": str(documents) + "x"}, "a")
