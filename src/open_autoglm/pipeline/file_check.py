# SPDX-License-Identifier: Apache-2.0
"""Checks pipelines' files in a process of its own: stages are imported for that, which a server must not do.

A request on stdin, `{"files": [...], "settings": {...}}`; on stdout for each file `{"content": ...}`, as
`PipelineFile.to_dict` has it, or `{"faults": [...]}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from open_autoglm.errors import OpenAutoGLMError, SpecificationError
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.yaml_file import read_pipeline


def check_file(path: Path, catalog: StageCatalog, settings: dict[str, Any]) -> dict[str, Any]:
    """What came of one file. Nothing outside of it is looked up: the worker does that."""
    try:
        return {"content": read_pipeline(path, catalog, settings=settings, look_up=False).to_dict()}
    except SpecificationError as error:
        return {"faults": list(error.faults)}
    except OpenAutoGLMError as error:
        return {"faults": [str(error)]}


def main() -> None:
    """Answer the one request."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a module that prints when it is imported must not write into the answer
    request = json.load(sys.stdin)
    settings: dict[str, Any] = request["settings"]
    try:
        catalog = default_catalog()
    except OpenAutoGLMError as error:
        results = [{"faults": [str(error)]} for _ in request["files"]]
    else:
        results = [check_file(Path(name), catalog, settings) for name in request["files"]]
    with answer:
        json.dump(results, answer)


if __name__ == "__main__":
    main()
