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
    "backend": (
        '''
class CLASS:
    """Hands the work to a backend that there is; put your own in its place."""

    def load(self, folder, options):
        """The backend for the model in a folder. options: weights, dtype, kv_dtype, threads."""
        from open_autoglm.engine.backends import load_backend

        return load_backend("auto", folder, **options)
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
    """Rounds to the nearest number of a grid around zero that spans each group's range."""

    def quantize(self, weights, bits, group_size):
        """float32[rows, columns] -> codes, scales and zeros: a weight is (code - zero) * scale."""
        middle = 1 << bits - 1
        groups = weights.reshape(len(weights), -1, group_size)
        scales = np.maximum(np.abs(groups).max(axis=2) / (middle - 1), 1e-6).astype(np.float32)
        codes = np.clip(np.rint(groups / scales[..., None]) + middle, 1, 2 * middle - 1)
        return {
            "codes": codes.reshape(weights.shape).astype(np.uint8),
            "scales": scales,
            "zeros": np.full(scales.shape, middle, np.float32),
        }
''',
        """
def test_it_comes_back_near():
    import numpy as np

    weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    parts = CLASS().quantize(weights, 8, 32)
    back = (parts["codes"].astype(np.float32) - parts["zeros"]) * parts["scales"]
    assert np.abs(back - weights).max() < 0.01
""",
    ),
    "tokenizer": (
        '''
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


class CLASS:
    """Byte-level BPE in which digits stand alone."""

    def train(self, texts, vocab_size):
        """The text of a tokenizer.json with at most so many tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer.to_str()
''',
        """
def test_texts_come_back():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(CLASS().train(["play 1975 by abba"] * 9, 300))
    encoded = tokenizer.encode("play 1975")
    assert tokenizer.decode(encoded.ids) == "play 1975" and encoded.tokens[-1] == "5"
""",
    ),
    "sampler": (
        '''
import math
import random


class CLASS:
    """Proposes values at random, without looking at what came of others."""

    def propose(self, parameters, trials, seed):
        """A value for each parameter: `integer`, `uniform`, `log_uniform` or `categorical`."""
        chance = random.Random(seed)
        return {one["name"]: self._value(one, chance) for one in parameters}

    def _value(self, parameter, chance):
        if "categorical" in parameter:
            return chance.choice(parameter["categorical"])
        if "integer" in parameter:
            low, high = parameter["integer"]
            return chance.randrange(low, high + 1, parameter.get("step", 1))
        if "log_uniform" in parameter:
            low, high = parameter["log_uniform"]
            return min(high, max(low, math.exp(chance.uniform(math.log(low), math.log(high)))))
        low, high = parameter["uniform"]
        step = parameter.get("step")
        return chance.uniform(low, high) if step is None else low + step * chance.randint(0, round((high - low) / step))
''',
        """
def test_it_keeps_to_the_bounds():
    parameters = [{"name": "layers", "integer": [1, 3]}, {"name": "kind", "categorical": ["a", "b"]}]
    for seed in range(20):
        values = CLASS().propose(parameters, [], seed)
        assert values["layers"] in (1, 2, 3) and values["kind"] in ("a", "b")
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
    "queue": (
        '''
from pathlib import Path


class CLASS:
    """A folder as a queue, for one worker: `NAME://?folder=inbox`. Each file in it is a message."""

    def connect(self, config):
        """config: `options` has the `folder`."""
        self._folder = Path(config["options"].get("folder", "inbox"))
        self._paths = {}

    def receive(self):
        """All files; a message's id is its file's name and time."""
        for path in sorted(self._folder.glob("*.json")):
            message_id = f"{path.stat().st_mtime_ns}-{path.name}"
            self._paths[message_id] = path
            yield message_id, path.read_bytes(), 1

    def keep(self, message_ids):
        """Nobody else takes them."""

    def acknowledge(self, message_id):
        """Remove the file."""
        self._paths.pop(message_id).unlink(missing_ok=True)

    def bury(self, message_id, reason):
        """Keep the file under another name, and the reason beside it."""
        path = self._paths.pop(message_id)
        path.with_suffix(".reason").write_text(reason)
        path.rename(path.with_suffix(".dead"))

    def close(self):
        """Nothing is open."""
''',
        """
def test_a_message_comes_until_it_is_acknowledged(tmp_path):
    (tmp_path / "a.json").write_text('{"id": 1}')
    queue = CLASS()
    queue.connect({"options": {"folder": str(tmp_path)}})
    [(message_id, body, deliveries)] = queue.receive()
    assert (body, deliveries) == (b'{"id": 1}', 1)
    assert len(list(queue.receive())) == 1
    queue.acknowledge(message_id)
    assert list(queue.receive()) == []
""",
    ),
    "protocol": (
        '''
_TEXT = "text/plain; charset=utf-8"


class CLASS:
    """A question as plain text is answered in plain text: `serve --protocol NAME`, then POST to /NAME."""

    def answer(self, request, chat):
        """Ask the model what the body asks."""
        if request["method"] != "POST":
            return {"status": 405, "content_type": _TEXT, "headers": {"allow": "POST"}, "body": "POST a question\\n"}
        try:
            question = request["body"].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            return {"status": 400, "content_type": _TEXT, "body": f"no UTF-8 text (byte {error.start})\\n"}
        if not question:
            return {"status": 400, "content_type": _TEXT, "body": "the body is empty: send a question\\n"}
        chunks = chat({"messages": [{"role": "user", "content": question}], "stream": True})
        return {"content_type": _TEXT, "body": self._texts(chunks)}

    def _texts(self, chunks):
        """What is new in each chunk, sent as it comes."""
        for chunk in chunks:
            for choice in chunk["choices"]:
                yield choice["delta"].get("content") or ""
        yield "\\n"
''',
        """
def test_a_question_in_an_answer_out():
    def chat(body):
        assert body["messages"] == [{"role": "user", "content": "how are you?"}] and body["stream"]
        return iter([{"choices": [{"delta": {"content": text}}]} for text in ("very ", "well")])

    request = {"method": "POST", "path": "/", "query": {}, "headers": {}, "body": b"how are you?\\n"}
    assert "".join(CLASS().answer(request, chat)["body"]) == "very well\\n"
    assert CLASS().answer({**request, "body": b""}, chat)["status"] == 400
    assert CLASS().answer({**request, "method": "GET"}, chat)["status"] == 405
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
