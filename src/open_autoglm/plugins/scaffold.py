# SPDX-License-Identifier: Apache-2.0
"""A new plugin's folder: a manifest, code that works, and a test that passes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.manifest import MANIFEST_NAME, raise_unless
from open_autoglm.storage import write_atomic
from open_autoglm.version import __version__

_BODIES: Final[dict[str, tuple[str, str]]] = {
    "reader": (
        '''
from pathlib import Path


class CLASS:
    """Reads files of lines: each is a row."""

    suffixes = (".lines",)

    def read(self, path):
        """One row a line."""
        with Path(path).open(encoding="utf-8") as file:
            for line in file:
                yield {"text": line.rstrip("\\n")}
''',
        """
def test_it_reads_each_line(tmp_path):
    path = tmp_path / "a.lines"
    path.write_text("one\\ntwo\\n")
    assert list(CLASS().read(path)) == [{"text": "one"}, {"text": "two"}]
""",
    ),
    "source": (
        '''
class CLASS:
    """Brings the records of a list in the settings; the cursor is how many have been brought."""

    def connect(self, config):
        """config: `records`, a list of mappings."""
        self._records = list(config.get("records", []))

    def fetch(self, cursor):
        """The records after the cursor, and the cursor after them."""
        start = cursor or 0
        return self._records[start:], len(self._records)

    def preprocess(self, records):
        """As they are."""
        return records
''',
        """
def test_the_cursor_goes_on():
    source = CLASS()
    source.connect({"records": [{"id": 1}, {"id": 2}]})
    records, cursor = source.fetch(None)
    assert list(source.preprocess(records)) == [{"id": 1}, {"id": 2}]
    assert source.fetch(cursor) == ([], 2)
""",
    ),
    "cleaner": (
        '''
class CLASS:
    """Puts one space where there are several."""

    def clean(self, text):
        """The text with single spaces."""
        return " ".join(text.split())
''',
        """
def test_it_cleans():
    assert CLASS().clean("  a \\n b ") == "a b"
""",
    ),
    "tokenizer": (
        '''
class CLASS:
    """The bytes of UTF-8 as tokens."""

    def encode(self, text):
        """Text to token ids."""
        return list(text.encode())

    def decode(self, token_ids):
        """Token ids to text."""
        return bytes(token_ids).decode()
''',
        """
def test_it_comes_back():
    assert CLASS().decode(CLASS().encode("北京")) == "北京"
""",
    ),
    "backend": (
        '''
class CLASS:
    """Hands the work to a backend that there is; put your own in its place."""

    def load(self, folder, dtype):
        """The backend for the model in a folder."""
        from open_autoglm.engine.loading import open_model

        return open_model(folder, dtype=dtype).backend
''',
        """
def test_it_can_be_made():
    assert callable(CLASS().load)
""",
    ),
    "quantizer": (
        '''
import numpy as np


class CLASS:
    """Eight bits a weight, with one scale a row."""

    def quantize(self, weights):
        """float32[rows, columns] -> codes and scales."""
        scales = np.abs(weights).max(axis=1, keepdims=True) / 127 + 1e-12
        return {"codes": np.rint(weights / scales).astype(np.int8), "scales": scales.astype(np.float32)}

    def dequantize(self, parts):
        """Codes and scales -> float32[rows, columns]."""
        return parts["codes"].astype(np.float32) * parts["scales"]
''',
        """
def test_it_comes_back_near():
    import numpy as np

    weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
    assert np.abs(CLASS().dequantize(CLASS().quantize(weights)) - weights).max() < 0.01
""",
    ),
    "sampler": (
        '''
import numpy as np


class CLASS:
    """Draws from the probabilities that the logits say."""

    def choose(self, logits, seed):
        """float32[vocabulary] -> a token's id."""
        weights = np.exp(logits.astype(np.float64) - logits.max())
        return int(np.random.default_rng(seed).choice(len(logits), p=weights / weights.sum()))
''',
        """
def test_it_is_repeatable():
    import numpy as np

    logits = np.zeros(10, np.float32)
    assert CLASS().choose(logits, 1) == CLASS().choose(logits, 1)
""",
    ),
    "stage": (
        '''
from pydantic import BaseModel, ConfigDict


class CLASSConfig(BaseModel):
    """The settings in the pipeline's file."""

    model_config = ConfigDict(extra="forbid")

    field: str = "text"


class CLASS:
    """Writes a field of each record in capitals."""

    config_model = CLASSConfig

    def __init__(self, config):
        self.config = config

    def invoke(self, packet, context):
        """The packet with its records changed."""
        field = self.config.field
        records = [{**record, field: str(record[field]).upper()} for record in packet.payload["records"]]
        return packet.with_payload({**packet.payload, "records": records})
''',
        """
def test_it_changes_the_field():
    from open_autoglm.pipeline import Packet

    stage = CLASS(CLASSConfig(field="a"))
    packet = stage.invoke(Packet("s", {"records": [{"id": 1, "a": "x"}]}), None)
    assert packet.payload["records"] == [{"id": 1, "a": "X"}]
""",
    ),
    "metric": (
        '''
class CLASS:
    """The share of answers that are the right one."""

    higher_is_better = True

    def score(self, answers, references):
        """From 0 to 1."""
        pairs = list(zip(answers, references, strict=True))
        return sum(answer == reference for answer, reference in pairs) / max(1, len(pairs))
''',
        """
def test_half_is_right():
    assert CLASS().score(["a", "b"], ["a", "c"]) == 0.5
""",
    ),
    "sink": (
        '''
import json
from pathlib import Path


class CLASS:
    """Writes the records of each key to a file of its own: what comes again replaces itself."""

    def connect(self, config):
        """config: `folder`."""
        self._folder = Path(config["folder"])
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, records, key):
        """Write them, whole or not at all; returns how many."""
        rows = list(records)
        path = self._folder / (key.replace("/", "-") + ".jsonl")
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(dict(row)) + "\\n" for row in rows), encoding="utf-8")
        partial.replace(path)
        return len(rows)
''',
        """
def test_the_same_key_twice_is_there_once(tmp_path):
    sink = CLASS()
    sink.connect({"folder": str(tmp_path)})
    assert sink.write([{"id": 1}], "run/1") == sink.write([{"id": 1}], "run/1") == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"id": 1}\\n']
""",
    ),
    "protocol": (
        '''
class CLASS:
    """Adds a route."""

    def mount(self, app):
        """Add GET /plugins/NAME to a Starlette application."""
        from starlette.responses import JSONResponse

        async def show(request):
            return JSONResponse({"plugin": "NAME"})

        app.add_route("/plugins/NAME", show)
''',
        """
def test_the_route_is_there():
    from starlette.applications import Starlette

    app = Starlette()
    CLASS().mount(app)
    assert app.url_path_for("show") == "/plugins/NAME"
""",
    ),
}


def scaffold(kind: str, name: str, folder: Path) -> Path:
    """Write a new plugin into `folder`/NAME; returns that folder.

    Raises ConfigurationError for a kind or name that cannot be, or when the folder is there already.
    """
    raise_unless(name, kind)
    target = folder / name
    if target.exists():
        raise ConfigurationError(f"{target} is there already; choose another name or folder")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    body, test = (text.replace("CLASS", class_name).replace("NAME", name) for text in _BODIES[kind])
    imported = f"{class_name}, {class_name}Config" if kind == "stage" else class_name
    write_atomic(
        target / MANIFEST_NAME,
        f"name: {name}\nkind: {kind}\nversion: 0.1.0\nentry: {name}:{class_name}\n"
        f'compatible: ">={__version__.split("+")[0]}"\n'
        + ("check_config: {records: [{id: 1}, {id: 2}]}\n" if kind == "source" else ""),
    )
    write_atomic(target / f"{name}.py", f'"""A {kind} for Open-AutoGLM."""\n{body}')
    write_atomic(
        target / f"test_{name}.py",
        f'"""Tests of the {kind}; run them with pytest here."""\n\nfrom {name} import {imported}\n\n{test}',
    )
    return target
