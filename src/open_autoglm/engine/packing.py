# SPDX-License-Identifier: Apache-2.0
"""Packing a model once, so that the native backend starts without reading its weights."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.bundle import MANIFEST, write_bundle
from open_autoglm.engine.backends import availability
from open_autoglm.engine.model_paths import find_model
from open_autoglm.errors import EngineError
from open_autoglm.storage import explained


@dataclass(frozen=True)
class PackingOutcome:
    """The file that was written, its size in bytes, and the seconds that it took.

    lost_signature: the bundle was signed, and is another now that it has one file more.
    """

    path: Path
    size: int
    seconds: float
    lost_signature: bool = False


def pack_model(model: str | Path, *, form: str) -> PackingOutcome:
    """Write the packed weights of a bundle or checkpoint into its folder. A bundle lists and hashes them.

    form: `float32`, `bfloat16`, `int8` or `int4`.
    Raises EngineError without the native backend, BundleError, CheckpointError or StorageError.
    """
    start = time.monotonic()
    is_available, detail = availability("native")
    if not is_available:
        raise EngineError(f"only the native engine uses packed weights, and it is not available: {detail}")
    from open_autoglm.engine.backends.native_backend import pack_weights
    from open_autoglm.engine.backends.packed_file import packed_path, write_packed

    folder = find_model(model)
    target = packed_path(folder, form)
    if not (folder / MANIFEST).is_file():
        write_packed(pack_weights(folder, form), folder, form, target)
        return PackingOutcome(target, target.stat().st_size, time.monotonic() - start)
    bundle = open_bundle(folder)
    packed = pack_weights(folder, form)
    # The bundle is replaced by a copy that has one file more: at no moment does it hold a file that it does not list.
    with explained(folder.parent, "write"):
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with explained(staging, "write"):
            for name in bundle.manifest.files:
                if name != target.name:
                    (staging / name).parent.mkdir(parents=True, exist_ok=True)
                    os.link(folder / name, staging / name)
            staging.chmod(folder.stat().st_mode & 0o777)
        write_packed(packed, folder, form, staging / target.name)
        write_bundle(folder, staging, bundle.manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return PackingOutcome(target, target.stat().st_size, time.monotonic() - start, bundle.signatures is not None)
