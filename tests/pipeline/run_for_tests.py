# SPDX-License-Identifier: Apache-2.0
"""Runs a pipeline, for tests that kill it: SPECIFICATION.json FOLDER [PATIENCE]; the result goes to stdout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from stages_for_tests import MODULES

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.pipeline import Packet, PipelineSpecification, run_pipeline
from open_autoglm.storage import FolderLock


def main() -> int:
    touched: list[str] = []
    if os.environ.get("WATCH_NETWORK"):
        sys.addaudithook(
            lambda event, _: (
                touched.append(event) if event in ("socket.connect", "socket.bind", "socket.getaddrinfo") else None
            )
        )
    specification = PipelineSpecification.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    folder = Path(sys.argv[2])
    lock = FolderLock(folder)
    try:
        lock.acquire(patience=float(sys.argv[3]) if len(sys.argv) > 3 else 3.0)
        result = run_pipeline(specification, Packet("test", {"numbers": []}), folder=folder, modules=MODULES, lock=lock)
    except OpenAutoGLMError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return error.exit_code
    except KeyboardInterrupt:
        print(json.dumps({"error": "KeyboardInterrupt"}))
        return 130
    finally:
        lock.release()
    print(json.dumps({"payload": result.payload, "network": touched}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
