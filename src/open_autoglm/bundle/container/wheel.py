# SPDX-License-Identifier: Apache-2.0
"""This package as it is installed here, as a wheel: without its sources, a compiler or the index that it came from.

Source: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
import sysconfig
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import open_autoglm
from open_autoglm.bundle.container.requirements import PACKAGE
from open_autoglm.errors import ConfigurationError
from open_autoglm.storage import explained

_DATE: Final = (1980, 1, 1, 0, 0, 0)
"""The first that a ZIP archive knows: the same code gives the same bytes."""
_LEFT_OUT: Final = ("__pycache__",)
_SUFFIXES_LEFT_OUT: Final = (".pyc", ".so", ".partial")


def write_wheel(folder: Path, extension: Path) -> Path:
    """Write the wheel into `folder`. extension: the compiled engine. Returns its path.

    Raises ConfigurationError when the package's own description is not installed, StorageError when the disk refuses.
    """
    installed = distribution(PACKAGE)
    metadata = installed.read_text("METADATA")
    if metadata is None:
        raise ConfigurationError(f"the installation of {PACKAGE} has no METADATA; install it again with pip")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    name = f"open_autoglm-{installed.version}-{tag}-{tag}-{platform}.whl"
    information = f"open_autoglm-{installed.version}.dist-info"
    root = Path(open_autoglm.__file__).parent
    with explained(root, "read"):
        members = {
            f"open_autoglm/{path.relative_to(root).as_posix()}": path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and path.suffix not in _SUFFIXES_LEFT_OUT
            and not any(part in _LEFT_OUT for part in path.relative_to(root).parts)
        }
        members[f"open_autoglm/engine/{extension.name}"] = extension.read_bytes()
    members[f"{information}/METADATA"] = metadata.encode("utf-8")
    members[f"{information}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: open-autoglm ({installed.version})\n"
        f"Root-Is-Purelib: false\nTag: {tag}-{tag}-{platform}\n"
    ).encode()
    members[f"{information}/entry_points.txt"] = b"[console_scripts]\nopen-autoglm = open_autoglm.cli:main\n"
    members[f"{information}/RECORD"] = _record(members, f"{information}/RECORD")
    path = folder / name
    with explained(path, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                entry = zipfile.ZipInfo(member, _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if member.endswith(".so") else 0o644) << 16
                archive.writestr(entry, content)
    return path


def newest_symbols(extension: Path) -> dict[str, tuple[int, ...]]:
    """The newest versions of the C and C++ libraries that a compiled file asks for: `{"GLIBC": (2, 34), ...}`.

    Taken from the names of symbol versions in the file, which can only be too many.
    """
    with explained(extension, "read"):
        content = extension.read_bytes()
    newest: dict[str, tuple[int, ...]] = {}
    for library, version in re.findall(rb"\0(GLIBC|GLIBCXX)_([0-9]+(?:\.[0-9]+)+)(?=\0)", b"\0" + content):
        name = library.decode()
        newest[name] = max(newest.get(name, ()), tuple(int(part) for part in version.split(b".")))
    return newest


def _record(members: dict[str, bytes], own_name: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")
        writer.writerow((name, f"sha256={digest}", len(content)))
    writer.writerow((own_name, "", ""))
    return text.getvalue().encode("utf-8")
