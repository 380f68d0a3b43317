# SPDX-License-Identifier: Apache-2.0
"""A server that runs on this machine: told to take its models anew, asked what it serves, asked for answers."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from open_autoglm.errors import ConfigurationError, PipelineError

_LOOK_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 120.0


class RunningServer:
    """url: of its API, such as http://127.0.0.1:8000/v1. pid_file: as `serve --pid-file` writes it."""

    def __init__(self, url: str, pid_file: Path, api_key: str | None) -> None:
        self._url, self._pid_file = url, pid_file
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=_ANSWER_SECONDS, follow_redirects=False,
            trust_env=False,
        )  # fmt: skip

    def reload(self) -> None:
        """Have it read its settings and its models again. Raises ConfigurationError when the file means no server."""
        try:
            descriptor = os.open(self._pid_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(
                f"{self._pid_file} cannot be read ({error.strerror}); start the server with --pid-file"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # its server holds it, so that the number means it and no other process
            else:
                raise ConfigurationError(f"no server runs that has {self._pid_file}")
            text = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip()
            if not text.isdigit() or int(text) <= 1:
                raise ConfigurationError(f"{self._pid_file} holds no number of a process")
            os.kill(int(text), signal.SIGHUP)
        except ProcessLookupError:
            raise ConfigurationError(f"no server runs that has {self._pid_file}") from None
        except PermissionError:
            raise ConfigurationError(f"the server of {self._pid_file} belongs to another user") from None
        finally:
            os.close(descriptor)

    def card(self, model: str) -> dict[str, Any]:
        """What /v1/models says of a model. Raises PipelineError when it does not know it."""
        response = self._request("GET", f"models/{quote(model, safe='')}")
        if response.status_code != 200:
            raise PipelineError(f"{self._url} answered {response.status_code} when asked for the model '{model}'")
        return response.json()

    def wait_for(self, model: str, version: str | None, seconds: float, cancelled: Callable[[], bool]) -> None:
        """Wait until the server has loaded this version of the model. Raises PipelineError when it does not in time."""
        deadline = time.monotonic() + seconds
        while True:
            card = self.card(model)
            if card.get("version") == version and card.get("state") == "ready":
                return
            if time.monotonic() > deadline or cancelled():
                raise PipelineError(
                    f"the server has version {card.get('version')} of '{model}' ({card.get('state')}), and not "
                    f"{version}, after {seconds:g} seconds; its log says why"
                )
            time.sleep(_LOOK_SECONDS)

    def answer(self, model: str, messages: list[dict[str, Any]]) -> str:
        """The model's answer, without chance. Raises PipelineError when it gives none."""
        body = {"model": model, "messages": messages, "temperature": 0}
        response = self._request("POST", "chat/completions", body)
        try:
            if response.status_code == 200:
                return response.json()["choices"][0]["message"]["content"] or ""
        except (ValueError, KeyError, IndexError, TypeError):
            pass
        raise PipelineError(f"{self._url} answered {response.status_code} to a question: {response.text[:300]}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ConnectionError(f"{self._url}: {type(error).__name__}: {error}") from None
