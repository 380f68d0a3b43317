# SPDX-License-Identifier: Apache-2.0
"""A bucket of S3, or of a store that speaks its protocol, as a registry.

Blobs lie under `NAME/blobs/sha256/`, manifests besides under `NAME/tags/`. Credentials, region and endpoint are found
by boto3 where AWS's own tools find them (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle.registry import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Reference
from open_autoglm.errors import ConfigurationError, RegistryError
from open_autoglm.storage import explained

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_TRIES: Final = 5
_PAUSE: Final = 0.2
_BLOCK: Final = 1024 * 1024


def open_s3_registry(reference: Reference, environment: Mapping[str, str]) -> S3Registry:
    """The place that `s3://BUCKET/NAME` means. environment: its AWS_ENDPOINT_URL, for stores that are not Amazon's.

    Raises ConfigurationError for a name that no bucket has, or without boto3.
    """
    bucket, _, name = reference.place.partition("/")
    if not _BUCKET.fullmatch(bucket) or not name.strip("/"):
        raise ConfigurationError(f"{reference} is not a place in a bucket; write s3://BUCKET/NAME:TAG")
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise ConfigurationError(
            "S3 needs a package that is not here; install it with: pip install 'open-autoglm[s3]'"
        ) from None
    try:
        client = boto3.client("s3", endpoint_url=environment.get("AWS_ENDPOINT_URL") or None)
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"S3 cannot be used: {error}") from None
    return S3Registry(client, bucket, name.strip("/"))


class S3Registry:
    """One repository in a bucket. client: of boto3."""

    def __init__(self, client: Any, bucket: str, name: str) -> None:
        self._client, self._bucket, self._name = client, bucket, name

    def has_blob(self, digest: str, size: int) -> bool:
        """By HEAD."""
        found = self._try(lambda: self._client.head_object(Bucket=self._bucket, Key=self._blob(digest)), missing=None)
        return found is not None and found["ContentLength"] == size

    def read_blob(self, digest: str, size: int, file: Path) -> None:
        """By GET, from the byte on that is missing."""
        from botocore.exceptions import BotoCoreError

        with explained(file, "write"):
            file.touch()
        failures = 0
        while (begun := file.stat().st_size) < size:
            found = self._try(lambda start=begun: self._get(self._blob(digest), start), missing=None)
            if found is None:
                raise RegistryError(f"{self._where} has no blob sha256:{digest}; push the bundle again")
            try:
                with explained(file, "write"), file.open("ab") as opened:
                    for block in found["Body"].iter_chunks(_BLOCK):
                        opened.write(block[: size - opened.tell()])
            except BotoCoreError:
                time.sleep(_PAUSE * 2**failures)
            finally:
                found["Body"].close()
            failures = failures + 1 if file.stat().st_size == begun else 0
            if failures >= _TRIES:
                raise RegistryError(f"{self._where} does not send sha256:{digest} to its end; try again later")

    def write_blob(self, digest: str, size: int, file: Path) -> None:
        """In parts, side by side, which boto3 tries again by itself; the blob appears when all are there."""
        self._try(lambda: self._client.upload_file(str(file), self._bucket, self._blob(digest)))

    def read_manifest(self, tag: str) -> bytes:
        """By its tag, or as a blob by its digest."""
        key = self._blob(tag[7:]) if tag.startswith("sha256:") else self._tag(tag)
        found = self._try(lambda: self._get(key, 0), missing=None)
        if found is None:
            raise RegistryError(f"{self._where} has no bundle {tag}; push it first, or check the name")
        return self._try(lambda: found["Body"].read(MAX_MANIFEST_BYTES + 1))

    def write_manifest(self, tag: str, content: bytes) -> None:
        """As a blob, then under its tag."""
        digest = hashlib.sha256(content).hexdigest()
        for key in (self._blob(digest), self._tag(tag)):
            self._try(
                lambda key=key: self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=content, ContentType=MANIFEST_TYPE
                )
            )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _get(self, key: str, begun: int) -> dict[str, Any]:
        more = {"Range": f"bytes={begun}-"} if begun else {}
        return self._client.get_object(Bucket=self._bucket, Key=key, **more)

    def _try(self, work: Callable[[], Any], **otherwise: Any) -> Any:
        """What boto3 raises, in words. missing: given back when there is no such object."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return work()
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            if code in ("404", "NoSuchKey", "NotFound") and "missing" in otherwise:
                return otherwise["missing"]
            raise RegistryError(f"{self._where} answers {code}; check the bucket's name and your rights") from None
        except (BotoCoreError, Boto3Error) as error:
            raise RegistryError(f"{self._where} cannot be used: {error}") from None

    @property
    def _where(self) -> str:
        return f"s3://{self._bucket}/{self._name}"

    def _blob(self, digest: str) -> str:
        return f"{self._name}/blobs/sha256/{digest}"

    def _tag(self, tag: str) -> str:
        return f"{self._name}/tags/{tag}.json"
