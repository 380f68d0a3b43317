# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile: two stages, no root, no shell, nothing to write but /tmp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

USER: Final = 10001
PORT: Final = 8080
API_KEY_VARIABLE: Final = "OPEN_AUTOGLM_API_KEY"
KEY_FILE: Final = "signing.pub"
_ENVIRONMENT: Final = "/opt/venv"
_PYTHON: Final = f"{_ENVIRONMENT}/bin/python"
_COMMAND: Final = f"{_ENVIRONMENT}/bin/open-autoglm"
_PROBE: Final = (
    "import urllib.request as request; "
    f"request.build_opener(request.ProxyHandler({{}})).open('http://127.0.0.1:{PORT}/health', timeout=4)"
)
DOCKERIGNORE: Final = "*\n!Dockerfile\n!bundle\n!wheels\n!requirements.txt\n!sbom.cdx.json\n!signing.pub\n"


def serve_command(*, has_key: bool, grpc_port: int | None) -> list[str]:
    """The command of the container."""
    words = [_COMMAND, "serve", "/bundle", "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104 - it is a container
    if has_key:
        words += ["--require-signature", f"/{KEY_FILE}"]
    if grpc_port is not None:
        words += ["--grpc-port", str(grpc_port)]
    return words


def dockerfile(
    base_image: str, wheel: str, labels: dict[str, str], *, is_offline: bool, has_key: bool, grpc_port: int | None
) -> str:
    """The text. base_image, wheel: checked names. is_offline: all wheels lie in `wheels/`, with hashes to compare."""
    index = ["--no-index", "--find-links", "wheels", "--require-hashes"] if is_offline else []
    install = [
        _PYTHON,
        "-m",
        "pip",
        "install",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--only-binary",
        ":all:",
    ]
    verify = [_COMMAND, "verify", "/bundle", *(["--key", f"/{KEY_FILE}"] if has_key else [])]
    key = [f"COPY {KEY_FILE} /{KEY_FILE}"] if has_key else []
    ports = f"EXPOSE {PORT}" + ("" if grpc_port is None else f" {grpc_port}")
    lines = [
        "# Written by `open-autoglm package`.",
        f"FROM {base_image} AS builder",
        "WORKDIR /build",
        _run(["python", "-m", "venv", _ENVIRONMENT]),
        "COPY requirements.txt ./",
        "COPY wheels/ ./wheels/",
        _run([*install, *index, "-r", "requirements.txt"]),
        _run([*install, "--no-index", "--no-deps", f"wheels/{wheel}"]),
        "# What cannot run here fails now, and not when it is deployed.",
        _run([_PYTHON, "-c", "import open_autoglm.engine._native"]),
        "COPY bundle/ /bundle/",
        *key,
        _run(verify),
        "",
        f"FROM {base_image}",
        *(f"LABEL {name}={json.dumps(value, ensure_ascii=True)}" for name, value in labels.items()),
        f"ENV PATH={_ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin \\",
        "    PYTHONUNBUFFERED=1 \\",
        "    PYTHONDONTWRITEBYTECODE=1",
        f"COPY --from=builder {_ENVIRONMENT} {_ENVIRONMENT}",
        "COPY --from=builder /bundle /bundle",
        *key,
        "COPY sbom.cdx.json /sbom.cdx.json",
        "WORKDIR /tmp",
        f"USER {USER}:{USER}",
        ports,
        "HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \\",
        f"    CMD {json.dumps([_PYTHON, '-I', '-c', _PROBE])}",
        f"ENTRYPOINT {json.dumps(serve_command(has_key=has_key, grpc_port=grpc_port))}",
        "",
    ]
    return "\n".join(lines)


def _run(words: Sequence[str]) -> str:
    return f"RUN {json.dumps(list(words))}"
