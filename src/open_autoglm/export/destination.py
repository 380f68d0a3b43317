# SPDX-License-Identifier: Apache-2.0
"""Where an export goes: nothing is overwritten unasked, and a file or folder appears whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle.bundle import place_folder
from open_autoglm.errors import ConfigurationError, StorageError
from open_autoglm.storage import explained, replacing, write_json
from open_autoglm.version import __version__

RECORD_FILE: Final = "export.json"
"""In an exported folder: what was exported, and how. `--force` replaces only folders that have one."""

_MARGIN: Final = 1 << 20


@contextlib.contextmanager
def new_file(out: Path, source: Path, size: int, *, force: bool) -> Iterator[Path]:
    """Give a path to write to that becomes the file `out` when the block ends well.

    source: the model's folder, which is not written into. size: about how many bytes will be written.
    Raises ConfigurationError for an `out` that is there already (without `force`) or lies in the model, StorageError
    when the disk refuses or has no room.
    """
    _check_place(out, source)
    if out.is_dir():
        raise ConfigurationError(f"--out {out} is a folder; give the name of a file in it")
    if out.exists() and not force:
        raise ConfigurationError(f"--out {out} is there already; choose another name, or replace it with --force")
    _check_room(out, size)
    with replacing(out) as temporary:
        yield temporary


@contextlib.contextmanager
def new_folder(out: Path, source: Path, size: int, record: dict[str, Any], *, force: bool) -> Iterator[Path]:
    """Give an empty folder to fill that becomes `out`, with `record` in its `export.json`, when the block ends well.

    Arguments and errors as for `new_file`; with `force`, only an older export is replaced.
    """
    _check_place(out, source)
    if out.is_file():
        raise ConfigurationError(f"--out {out} is a file; give the name of a folder")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise ConfigurationError(f"--out {out} is there already; choose another name, or replace it with --force")
        if not (out / RECORD_FILE).is_file():
            raise ConfigurationError(
                f"--out {out} is not an export (it has no {RECORD_FILE}), so --force does not replace it; choose "
                "another name"
            )
    _check_room(out, size)
    with explained(out, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield staging
        write_json(staging / RECORD_FILE, {"written_by": f"open-autoglm {__version__}", **record})
        with explained(staging, "write"):
            staging.chmod(0o755)
        place_folder(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_place(out: Path, source: Path) -> None:
    target, model = out.resolve(), source.resolve()
    if target == model or model in target.parents:
        raise ConfigurationError(f"--out {out} lies in the model's own folder; choose another place")
    if target in model.parents:
        raise ConfigurationError(f"--out {out} holds the model itself; choose another place")


def _check_room(out: Path, size: int) -> None:
    """Before hours of writing rather than after."""
    parent = out.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    with explained(parent, "read"):
        free = shutil.disk_usage(parent).free
    if size + _MARGIN > free:
        raise StorageError(
            f"cannot write {out}: it needs about {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; free some space"
            " or choose another disk"
        )
