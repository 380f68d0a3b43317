# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil a bundle, drawn from a seeded generator, and who tries them on us."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.huggingface import read_tokenizer
from open_autoglm.bundle.keys import VerifyingKey
from open_autoglm.models.mapped_tensors import MappedTensors
from open_autoglm.models.model_folder import load_config
from open_autoglm.models.weights import open_weights

LINK: Final = "link:"
FIFO: Final = "fifo:"
FOLDER: Final = "folder:"
Files = dict[str, bytes | str]
"""Contents by name; a text is something else than a file: a link to a place, a pipe, an empty folder."""

_NUMBERS: Final = (0, -1, 1, 7, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308)
_TEXTS: Final = (
    "", "x", "../../outside", "/etc/passwd", "inner/../../x", "a\\b", "\x00", "\ud800", "\x1b[2J", "bundle.json", "F64",
    "F32", "I8", "U8", "int8", "A" * 5000, "$(id)", "＂", "工单", "0" * 64, "f" * 64, ".", "..", "a//b", "a/./b",
)  # fmt: skip
_NAMES: Final = ("extra.py", "modeling.py", "model.bin", ".hidden", "inner/x", "a b", "x\ny", "工", "pytorch_model.pt")


@dataclass(frozen=True)
class Mutation:
    """A spoilt bundle. kind: what was done."""

    kind: str
    files: Files


@dataclass(frozen=True)
class Attacker:
    """Who may change what, and what we do with it. attempt: returns what became of it, or raises."""

    mutate: Callable[[Files, random.Random], Mutation]
    attempt: Callable[[Path, VerifyingKey, Mutation], str]


def read_files(folder: Path) -> Files:
    """A bundle folder in memory."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_files(folder: Path, files: Files) -> None:
    """The folder anew. Names were made by `_place`, so they stay inside."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content.startswith(LINK):
                path.symlink_to(content.removeprefix(LINK))
            elif content == FIFO:
                os.mkfifo(path)
            else:
                path.mkdir()


def mutate_anything(files: Files, generator: random.Random) -> Mutation:
    """Any byte, name or link, `bundle.json` and the signature included."""
    kinds = [_flip, _cut, _insert, _remove, _swap, _place, _replace, _json]
    return _until_changed(files, generator, lambda: generator.choice(kinds)(dict(files), generator, None))


def mutate_unsigned(files: Files, generator: random.Random) -> Mutation:
    """Anything but the meaning of `bundle.json`; of that, what cannot be true of these files."""
    if generator.random() < 0.5:
        names = [name for name in files if name not in ("bundle.json", "bundle.sig")]
        kinds = [_flip, _cut, _insert, _remove, _swap, _place, _replace]
        return _until_changed(files, generator, lambda: generator.choice(kinds)(dict(files), generator, names))
    return _until_changed(files, generator, lambda: _false_manifest(dict(files), generator))


def mutate_contents(files: Files, generator: random.Random) -> Mutation:
    """Weights, tokenizer and configuration, with a `bundle.json` that fits them."""
    name = generator.choice(["model.safetensors", "model.safetensors", "tokenizer.json", "config.json"])
    kinds = [_flip, _cut, _insert, _header if name.endswith("s") else _json, _header if name.endswith("s") else _json]
    spoilt = _until_changed(files, generator, lambda: generator.choice(kinds)(dict(files), generator, [name]))
    manifest = json.loads(files["bundle.json"])
    content = spoilt.files[name]
    assert isinstance(content, bytes)
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewritten = {**spoilt.files, "bundle.json": json.dumps(manifest).encode()}
    rewritten.pop("bundle.sig", None)
    return Mutation(f"{spoilt.kind} {name}", rewritten)


def attempt_sealed(folder: Path, key: VerifyingKey, _: Mutation) -> str:
    """With the signer's key."""
    open_bundle(folder, key=key)
    return "accepted"


def attempt_unsigned(folder: Path, _: VerifyingKey, __: Mutation) -> str:
    """Without a key."""
    open_bundle(folder)
    return "accepted"


def attempt_contents(folder: Path, _: VerifyingKey, __: Mutation) -> str:
    """All readers of what is inside, to the last tensor."""
    opened = open_bundle(folder)
    load_config(opened.path)
    mapped = MappedTensors(opened.path / "model.safetensors")
    for name in mapped.entries:
        mapped.array(name).sum()
    mapped.close()
    with open_weights(opened.path, int8=False) as reader:
        layers = reader.config.num_hidden_layers
        for name in ("model.embed_tokens", *(f"model.layers.{i}.mlp.down_proj" for i in range(min(layers, 4)))):
            reader.linear(name)
    tokenizer = read_tokenizer(opened.path)
    tokenizer.encode("book a table for two 北京", add_special_tokens=False)
    return "read: other values, in order"


ATTACKERS: Final = {
    "sealed": Attacker(mutate_anything, attempt_sealed),
    "unsigned": Attacker(mutate_unsigned, attempt_unsigned),
    "rewritten": Attacker(mutate_contents, attempt_contents),
}


class Sandbox:
    """Notes whatever this process writes, renames, removes or starts outside a folder, while it is entered."""

    _EVENTS: Final = frozenset(
        ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
    )

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self.written_outside: list[str] = []
        self._active = False
        sys.addaudithook(self._notice)

    def __enter__(self) -> Sandbox:
        self._active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While the test itself writes."""
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            path, mode, flags = arguments
            is_write = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)) if flags is not None else False
            if not is_write and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
            places = [path]
        elif event in self._EVENTS:
            places = [item for item in arguments if isinstance(item, str | bytes)]
        elif event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "pickle.find_class",
            "socket.connect",
        ):
            self.written_outside.append(event)
            return
        else:
            return
        for place in places:
            if isinstance(place, str | bytes) and not os.path.realpath(os.fsdecode(place)).startswith(self._folder):
                self.written_outside.append(f"{event} {os.fsdecode(place)[:200]!r}")


def _until_changed(files: Files, generator: random.Random, make: Callable[[], Mutation]) -> Mutation:
    while True:
        made = make()
        if made.files != files:
            return made


def _choose(files: Files, generator: random.Random, names: list[str] | None) -> str:
    return generator.choice(sorted(name for name in (names or files) if files.get(name)))


def _bytes(files: Files, name: str) -> bytes:
    content = files[name]
    assert isinstance(content, bytes)
    return content


def _flip(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    name = _choose(files, generator, names)
    content = bytearray(_bytes(files, name))
    # The beginning of a file decides most.
    reach = len(content) if generator.random() < 0.5 else min(len(content), 400)
    for _ in range(generator.choice((1, 1, 1, 2, 8))):
        content[generator.randrange(reach)] ^= 1 << generator.randrange(8)
    return Mutation("flip", {**files, name: bytes(content)})


def _cut(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    name = _choose(files, generator, names)
    content = _bytes(files, name)
    begin = generator.randrange(len(content))
    end = len(content) if generator.random() < 0.5 else generator.randrange(begin, len(content)) + 1
    return Mutation("cut", {**files, name: content[:begin] + content[end:]})


def _insert(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    name = _choose(files, generator, names)
    content = _bytes(files, name)
    junk = generator.choice(
        (
            generator.randbytes(generator.randrange(1, 9)),
            b" ",
            b"\n",
            b"\x00",
            b"[" * 5000,
            b'{"a":' * 3000,
            b"9" * 5000,
        )
    )
    place = generator.choice((0, len(content), generator.randrange(len(content))))
    return Mutation("insert", {**files, name: content[:place] + junk + content[place:]})


def _remove(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    name = _choose(files, generator, names)
    del files[name]
    return Mutation("remove", files)


def _swap(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    first, second = (_choose(files, generator, names) for _ in range(2))
    files[first], files[second] = files[second], files[first]
    return Mutation("swap", files)


def _place(files: Files, generator: random.Random, _: list[str] | None) -> Mutation:
    """Something more, or something else, in the folder."""
    name = generator.choice(_NAMES)
    if generator.random() < 0.4:
        name = generator.choice(sorted(files)) + generator.choice(("x", "~", ".bak"))
    content = generator.choice((b"", b"print()", f"{LINK}/etc/passwd", f"{LINK}config.json", f"{LINK}.", FIFO, FOLDER))
    return Mutation(f"place {content[:5] if isinstance(content, str) else 'file'}", {**files, name: content})


def _replace(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    """A file by a link, a pipe or a folder; a link to the very same content as well."""
    name = _choose(files, generator, names)
    content = generator.choice((f"{LINK}/etc/passwd", f"{LINK}/dev/zero", f"{LINK}{name}", FIFO, FOLDER))
    return Mutation(f"replace {content[:5]}", {**files, name: content})


def _json(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    """A value, a key or a whole part of a JSON file by another."""
    among = [name for name in (names or files) if name.endswith((".json", ".sig"))]
    name = _choose(files, generator, among)
    value = json.loads(_bytes(files, name))
    for _ in range(generator.choice((1, 1, 2, 4))):
        value = _spoil(value, generator)
    text = json.dumps(value, ensure_ascii=generator.random() < 0.5)
    return Mutation("json", {**files, name: text.encode("utf-8", "surrogatepass")})


def _spoil(value: Any, generator: random.Random) -> Any:
    """One place of a JSON value, anywhere in it, changed."""
    place, path = value, []
    while isinstance(place, dict | list) and place and (not path or generator.random() < 0.85):
        step = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
        path.append((place, step))
        place = place[step]
    if not path:
        return _other(place, generator)
    holder, step = path[-1]
    action = generator.randrange(4)
    if action == 0:
        del holder[step]
    elif action == 1 and isinstance(holder, dict):
        holder[generator.choice(_TEXTS)] = holder.pop(step)
    elif action == 2 and isinstance(holder, dict):
        holder[generator.choice(_TEXTS)] = _other(place, generator)
    else:
        holder[step] = _other(place, generator)
    return value


def _other(value: Any, generator: random.Random) -> Any:
    kind = generator.randrange(7)
    if kind == 0 and isinstance(value, int | float):
        return value * generator.choice((-1, 2, 1000)) + generator.choice((0, 1, -1))
    if kind == 1:
        return generator.choice(_NUMBERS)
    if kind == 2:
        return generator.choice(_TEXTS)
    if kind == 3:
        return [value] * generator.choice((0, 1, 3))
    if kind == 4:
        nested: Any = value
        for _ in range(generator.choice((5, 200))):
            nested = [nested] if generator.random() < 0.5 else {"a": nested}
        return nested
    return generator.choice((None, True, False, {}, []))


def _header(files: Files, generator: random.Random, names: list[str] | None) -> Mutation:
    """The header of a safetensors file, which says where each tensor lies."""
    name = _choose(files, generator, names)
    content = _bytes(files, name)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for _ in range(generator.choice((1, 1, 2))):
        header = _spoil(header, generator)
    encoded = json.dumps(header, ensure_ascii=generator.random() < 0.5).encode("utf-8", "surrogatepass")
    claimed = len(encoded) if generator.random() < 0.8 else generator.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))
    return Mutation("header", {**files, name: claimed.to_bytes(8, "little") + encoded + content[8 + length :]})


def _false_manifest(files: Files, generator: random.Random) -> Mutation:
    """A `bundle.json` that names other files or hashes, or is none."""
    values = json.loads(_bytes(files, "bundle.json"))
    kind = generator.randrange(6)
    listed = values["files"]
    name = generator.choice(sorted(listed))
    if kind == 0:
        listed[generator.choice([text for text in _TEXTS if text != "F32"])] = listed[name]
    elif kind == 1:
        del listed[name]
    elif kind == 2:
        listed[name]["size"] = generator.choice(_NUMBERS)
    elif kind == 3:
        digits = list(listed[name]["sha256"])
        digits[generator.randrange(64)] = generator.choice("0123456789abcdefgXYZ")
        listed[name]["sha256"] = "".join(digits)
    elif kind == 4:
        key = generator.choice(("schema_version", "task", "files", "architecture", "name", "parameters"))
        values[key] = generator.choice(([], 0.5, -1, None, {"kind": "x"}, [[[[]]]]))
    else:
        values[generator.choice(("__class__", "extra", "file", ""))] = _other(1, generator)
    if values == json.loads(_bytes(files, "bundle.json")):
        return Mutation("same", files)
    return Mutation(f"manifest {kind}", {**files, "bundle.json": json.dumps(values).encode("utf-8", "surrogatepass")})
