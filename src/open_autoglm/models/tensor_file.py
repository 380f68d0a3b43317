# SPDX-License-Identifier: Apache-2.0
"""Writing tensors to a safetensors file that is there whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from open_autoglm.storage import replacing


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and string metadata, atomically. Raises StorageError when the disk refuses."""
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            # The library hides the system's error in its text; given back its number, it gets the usual advice.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error)) from None
