# SPDX-License-Identifier: Apache-2.0
"""A registry that speaks the OCI distribution protocol, as Docker's and most hosts of containers do.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin

from open_autoglm.bundle.registries.oci_access import OciAccess
from open_autoglm.bundle.registry import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Reference
from open_autoglm.errors import ConfigurationError, RegistryError
from open_autoglm.storage import explained

if TYPE_CHECKING:
    import httpx

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")
_NAME: Final = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_TRIES: Final = 5
_PAUSE: Final = 0.2
_CHUNK: Final = 16 * 1024 * 1024
_MAX_ERROR: Final = 64 * 1024


def open_oci_registry(reference: Reference, environment: Mapping[str, str]) -> OciRegistry:
    """The repository that `oci://HOST/NAME` means, over HTTPS; `oci+http://` is for registries without it.

    environment: see `OciAccess`. Raises ConfigurationError for a name that no registry takes, or without httpx.
    """
    host, _, name = reference.place.partition("/")
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"{reference}: '{host}' is not the address of a registry")
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{reference}: '{name}' is not a repository: small letters and digits, parts divided by / . _ or -"
        )
    scheme = "http" if reference.scheme == "oci+http" else "https"
    return OciRegistry(f"{scheme}://{host}", name, OciAccess(f"{scheme}://{host}", name, environment))


class OciRegistry:
    """One repository. Reads go on where a broken connection left off, and so do writes within a blob."""

    def __init__(self, base: str, name: str, access: OciAccess) -> None:
        self._root, self._where, self._access = f"{base}/v2/{name}", f"{base}/{name}", access

    def has_blob(self, digest: str, size: int) -> bool:
        """By HEAD."""
        with self._send("HEAD", self._blob(digest)) as response:
            if response.status_code == 404:
                return False
            self._expect(response, 200)
            length = response.headers.get("Content-Length")
            return length is None or length == str(size)

    def read_blob(self, digest: str, size: int, file: Path) -> None:
        """By GET, from the byte on that is missing."""
        import httpx

        with explained(file, "write"):
            file.touch()
        failures = 0
        while (begun := file.stat().st_size) < size:
            try:
                self._read_on(digest, size, file, begun)
            except httpx.RequestError as error:
                self._pause(error, failures)
            # Only tries that bring nothing count: a large blob may need many connections.
            failures = failures + 1 if file.stat().st_size == begun else 0
            if failures >= _TRIES:
                raise RegistryError(f"{self._where} does not send sha256:{digest} to its end; try again later")

    def _read_on(self, digest: str, size: int, file: Path, begun: int) -> None:
        headers = {"Accept-Encoding": "identity"}
        if begun:
            headers["Range"] = f"bytes={begun}-"
        with self._send("GET", self._blob(digest), headers=headers) as response:
            self._expect(response, 200, 206)
            if response.status_code == 200:
                begun = 0  # it knows no ranges and begins anew
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
                raise RegistryError(f"{self._where} gives another part of sha256:{digest} than was asked for")
            with explained(file, "write"), file.open("rb+") as opened:
                opened.truncate(begun)
                opened.seek(begun)
                for block in response.iter_raw():
                    begun += len(block)
                    if begun > size:
                        raise RegistryError(f"{self._where} gives more bytes for sha256:{digest} than it has")
                    opened.write(block)
                    opened.flush()

    def write_blob(self, digest: str, size: int, file: Path) -> None:
        """By a session of chunks; a chunk that was cut off goes on from what the registry says that it has."""
        import httpx

        place, sent, failures = self._begin_upload(), 0, 0
        with explained(file, "read"), file.open("rb") as opened:
            while sent < size:
                opened.seek(sent)
                chunk = opened.read(min(_CHUNK, size - sent))
                if not chunk:
                    raise RegistryError(f"{file} became shorter while it was sent; push again")
                headers = {
                    "Content-Type": "application/octet-stream",
                    "Content-Range": f"{sent}-{sent + len(chunk) - 1}",
                }
                try:
                    with self._send("PATCH", place, headers=headers, content=chunk) as response:
                        if response.status_code != 416:  # else it has another part than we think
                            self._expect(response, 202)
                            place, sent, failures = self._location(response), sent + len(chunk), 0
                            continue
                except httpx.RequestError as error:
                    self._pause(error, failures)
                failures += 1
                if failures >= _TRIES:
                    raise RegistryError(f"{self._where} does not take sha256:{digest}; try again later")
                place, sent = self._progress_of(place)
        url = httpx.URL(place).copy_merge_params({"digest": f"sha256:{digest}"})
        with self._send("PUT", str(url), headers={"Content-Length": "0"}) as response:
            self._expect(response, 201, 204)

    def _begin_upload(self) -> str:
        with self._send("POST", f"{self._root}/blobs/uploads/", headers={"Content-Length": "0"}) as response:
            self._expect(response, 202)
            return self._location(response)

    def _progress_of(self, place: str) -> tuple[str, int]:
        """Where an upload stands: its place, and how many bytes have come. Begins another if that cannot be told."""
        with self._send("GET", place) as response:
            self._expect(response, 204, 202)
            end = response.headers.get("Range", "").removeprefix("bytes=").removeprefix("0-")
            if end.isdigit() and int(end) > 0:
                return self._location(response), int(end) + 1
        return self._begin_upload(), 0  # 0-0 is what registries say of one byte, and of none

    def read_manifest(self, tag: str) -> bytes:
        """By GET."""
        with self._send("GET", f"{self._root}/manifests/{tag}", headers={"Accept": MANIFEST_TYPE}) as response:
            if response.status_code == 404:
                raise RegistryError(f"{self._where} has no bundle {tag}; push it first, or check the name")
            self._expect(response, 200)
            return _read_at_most(response, MAX_MANIFEST_BYTES)

    def write_manifest(self, tag: str, content: bytes) -> None:
        """By PUT."""
        headers = {"Content-Type": MANIFEST_TYPE}
        with self._send("PUT", f"{self._root}/manifests/{tag}", headers=headers, content=content) as response:
            self._expect(response, 201)

    def close(self) -> None:
        """Close the connections."""
        self._access.close()

    @contextlib.contextmanager
    def _send(self, method: str, url: str, **more: Any) -> Iterator[httpx.Response]:
        """A request. Those that change nothing are tried again when the connection fails."""
        import httpx

        failures = 0
        while True:
            try:
                response = self._access.send(method, url, **more)
                break
            except httpx.RequestError as error:
                if method == "PATCH":
                    raise  # whoever sends chunks knows how to go on
                if method not in ("GET", "HEAD"):
                    raise self._unreachable(error) from None
                self._pause(error, failures)
                failures += 1
        try:
            yield response
        finally:
            response.close()

    def _pause(self, error: Exception, failures: int) -> None:
        if failures + 1 >= _TRIES:
            raise self._unreachable(error) from None
        time.sleep(_PAUSE * 2**failures)

    def _unreachable(self, error: Exception) -> RegistryError:
        reason = str(error) or type(error).__name__
        return RegistryError(f"cannot reach {self._where}: {reason.lower()}; check the address and the network")

    def _expect(self, response: httpx.Response, *codes: int) -> None:
        if response.status_code in codes:
            return
        said = _message_of(response)
        if response.status_code in (401, 403):
            raise RegistryError(f"{self._where} refuses{said}; {self._access.advice}")
        kind = "; try again later" if response.status_code in (429, 500, 502, 503, 504) else ""
        raise RegistryError(f"{self._where} answers {response.status_code}{said}{kind}")

    def _location(self, response: httpx.Response) -> str:
        place = response.headers.get("Location")
        if not place:
            raise RegistryError(f"{self._where} does not say where to send a blob; it is not an OCI registry")
        found = urljoin(str(response.request.url), place)
        if not found.startswith(("http://", "https://")) or not found.isprintable():
            raise RegistryError(f"{self._where} names a place for a blob that is none; it is not an OCI registry")
        return found

    def _blob(self, digest: str) -> str:
        return f"{self._root}/blobs/sha256:{digest}"


def _read_at_most(response: httpx.Response, limit: int) -> bytes:
    """A body, one byte over the limit at most."""
    content = b""
    for block in response.iter_bytes(64 * 1024):
        content += block
        if len(content) > limit:
            break
    return content[: limit + 1]


def _message_of(response: httpx.Response) -> str:
    """What the registry says, in plain characters."""
    import httpx

    try:
        text = json.loads(_read_at_most(response, _MAX_ERROR))["errors"][0]["message"]
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ""
    plain = "".join(character if character.isprintable() else " " for character in str(text)[:200])
    return f": {plain}"
