# SPDX-License-Identifier: Apache-2.0
"""An index of passages in one file: BM25 by SQLite's full-text search, and embeddings beside it."""

from __future__ import annotations

import itertools
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from open_autoglm.errors import ConfigurationError, StorageError
from open_autoglm.pipeline.stages.passages import Passage
from open_autoglm.storage import replacing
from open_autoglm.words import is_spaceless, split_words

if TYPE_CHECKING:
    import numpy as np

_BATCH: Final = 256
_MOST_TERMS: Final = 256
"""Different words of a question that are looked for."""

_TABLES: Final = """
pragma journal_mode = off;
pragma synchronous = off;
create table passages (number integer primary key, id text not null, document text not null, text text not null);
create table vectors (number integer primary key, vector blob not null);
create virtual table terms using fts5(words, content = '', tokenize = "unicode61 remove_diacritics 2");
"""

Embed = Callable[[Sequence[str]], "np.ndarray"]


@dataclass(frozen=True)
class Found:
    """A passage and how well it fits. score: of BM25, or the cosine."""

    passage: Passage
    score: float


class PassageIndex:
    """An index that was written by `write_index`. Raises StorageError when the file is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _explained(path):
            # immutable: the file is never changed in place, so no lock is needed and none is left behind.
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
            (self.num_passages,) = self._connection.execute("select count(*) from passages").fetchone()
        self._vectors: np.ndarray | None = None

    def by_words(self, question: str, most: int) -> list[tuple[int, float]]:
        """Numbers of passages with their BM25 scores, best first: k1 = 1.2, b = 0.75; none that has no word of it."""
        wanted = list(dict.fromkeys(terms_of(question)))[:_MOST_TERMS]
        if not wanted:
            return []
        query = " OR ".join(f'"{term}"' for term in wanted)
        statement = (
            "select rowid, -bm25(terms) as score from terms where terms match ? order by score desc, rowid limit ?"
        )
        with _explained(self._path):
            return list(self._connection.execute(statement, (query, most)))

    def by_vector(self, vector: np.ndarray, most: int) -> list[tuple[int, float]]:
        """Numbers of passages with the cosines of their embeddings, best first."""
        import numpy as np

        if self._vectors is None:
            with _explained(self._path):
                rows = [row for (row,) in self._connection.execute("select vector from vectors order by number")]
            self._vectors = np.frombuffer(b"".join(rows), dtype="<f4").reshape(len(rows), -1)
        if not len(self._vectors):
            return []
        if self._vectors.shape[1] != len(vector):
            raise ConfigurationError(
                f"the index has embeddings of {self._vectors.shape[1]} numbers, and the question one of {len(vector)}; "
                f"the model has changed: delete {self._path}"
            )
        scores = self._vectors @ vector.astype(np.float32)
        best = np.argsort(-scores, kind="stable")[:most]
        return [(int(number) + 1, float(scores[number])) for number in best]

    def passage(self, number: int) -> Passage:
        """A passage by its number."""
        with _explained(self._path):
            row = self._connection.execute("select id, document, text from passages where number = ?", (number,))
            return Passage(*row.fetchone())

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def write_index(path: Path, passages: Iterable[Passage], embed: Embed | None, older: Path | None = None) -> int:
    """Write an index whole or not at all. Returns how many passages were embedded.

    embed: texts -> float32[n, size]; None for an index without embeddings. older: an index made with the same model,
    from which the embeddings of equal texts are taken.
    Raises StorageError when the disk refuses, and what `passages` and `embed` raise.
    """
    import numpy as np

    known = {} if embed is None or older is None else _vectors_by_text(older)
    embedded = 0
    with replacing(path) as temporary, _explained(path), closing(sqlite3.connect(temporary)) as connection:
        connection.executescript(_TABLES)
        numbered = enumerate(passages, 1)
        while part := list(itertools.islice(numbered, _BATCH)):
            connection.executemany(
                "insert into passages values (?, ?, ?, ?)", [(n, one.id, one.document, one.text) for n, one in part]
            )
            connection.executemany(
                "insert into terms (rowid, words) values (?, ?)", [(n, " ".join(terms_of(one.text))) for n, one in part]
            )
            if embed is None:
                continue
            new = list(dict.fromkeys(one.text for _, one in part if one.text not in known))
            for text, vector in zip(new, embed(new) if new else (), strict=True):
                known[text] = np.asarray(vector, dtype="<f4").tobytes()
            embedded += len(new)
            connection.executemany("insert into vectors values (?, ?)", [(n, known[one.text]) for n, one in part])
        connection.commit()
    return embedded


def terms_of(text: str) -> Iterator[str]:
    """What is looked for: words in lower case; of scripts without spaces, signs and pairs of neighbouring signs."""
    before = ""
    for word in split_words(unicodedata.normalize("NFKC", text).casefold()):
        if not any(map(str.isalnum, word)):
            before = ""
        elif not is_spaceless(word[0]):
            yield word
            before = ""
        else:
            yield word
            if before:
                yield before + word
            before = word


def _vectors_by_text(path: Path) -> dict[str, bytes]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return dict(connection.execute("select text, vector from passages join vectors using (number)"))
    except sqlite3.Error:
        return {}  # an index that cannot be read saves no work


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "no such module" in str(error):
            raise ConfigurationError(
                f"SQLite here has no full-text search (FTS5), which an index needs: {error}"
            ) from None
        raise StorageError(f"cannot use the index {path}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise StorageError(f"{path} is no index of passages ({error}); delete it, and it is made again") from None
