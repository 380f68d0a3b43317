# SPDX-License-Identifier: Apache-2.0
"""`python proto/generate.py [FOLDER]`: writes the Python of the .proto file into the package, or into another folder.

Needs grpcio-tools in the version that constraints.txt names: others write other bytes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent
SOURCE: Final = "open_autoglm/v1/open_autoglm.proto"
PACKAGE: Final = "open_autoglm.serve.grpc"
TARGET: Final = ROOT.parent / "src" / PACKAGE.replace(".", "/")
HEAD: Final = (
    "# SPDX-License-Identifier: Apache-2.0\n# Made by proto/generate.py; change proto/open_autoglm/v1 instead.\n"
)


def generate(target: Path) -> list[Path]:
    """Write `open_autoglm_pb2.py`, its types and its stubs into a folder. Raises RuntimeError for what protoc refuses.

    protoc names the import of the messages after the folder of the .proto file; here they lie in the package.
    """
    from grpc_tools import protoc  # of the development extra; the package's users need it not

    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        status = protoc.main(["protoc", f"--proto_path={ROOT}", *outputs, SOURCE])
        if status:
            raise RuntimeError(f"protoc ended with {status}")
        written: list[Path] = []
        for path in sorted(Path(folder).rglob("open_autoglm_pb2*")):
            text = path.read_text(encoding="utf-8")
            text = text.replace("from open_autoglm.v1 import", f"from {PACKAGE} import")
            found = target / path.name
            found.write_text(HEAD + text, encoding="utf-8")
            written.append(found)
    return written


def main(arguments: Sequence[str]) -> int:
    """Generate into the folder that was given."""
    generate(Path(arguments[0]) if arguments else TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
