# SPDX-License-Identifier: Apache-2.0
"""`bundle.sig`: who vouches for the exact bytes of `bundle.json`, and so for every file that it hashes.

An Ed25519 signature over the file as it is, without any framing, so that OpenSSL can check it without us.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from open_autoglm.bundle.keys import SigningKey, VerifyingKey
from open_autoglm.errors import BundleError, SignatureMismatchError, UnsignedBundleError, WrongKeyError
from open_autoglm.storage import explained, write_atomic

SIGNATURE_FILE: Final = "bundle.sig"
OMS_SIGNATURE_FILE: Final = "model.sig"
"""Where Open Model Signing puts its signature."""
UNLISTED_FILES: Final = frozenset({SIGNATURE_FILE, OMS_SIGNATURE_FILE})
"""Files that come after `bundle.json`, so that it cannot list them."""
MAX_SIGNATURE_BYTES: Final = 64 * 1024
_MAX_SIGNATURES: Final = 32


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SignatureRecord(_Strict):
    """One signature. key_id: `SHA256:` and a digest of the public key; value: 64 bytes in base64."""

    algorithm: Literal["ed25519"] = "ed25519"
    key_id: Annotated[str, Field(pattern="^SHA256:[A-Za-z0-9+/]{43}$")]
    value: Annotated[str, Field(pattern="^[A-Za-z0-9+/]{86}==$")]

    @property
    def content(self) -> bytes:
        """The signature itself."""
        return base64.b64decode(self.value)


class SignatureFile(_Strict):
    """`bundle.sig`: one signature or several, each by another key."""

    version: Literal[1] = 1
    signatures: Annotated[tuple[SignatureRecord, ...], Field(min_length=1, max_length=_MAX_SIGNATURES)]

    def to_bytes(self) -> bytes:
        """The one way in which these signatures are written."""
        return (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode("ascii")


def parse_signatures(content: bytes, where: object) -> SignatureFile:
    """Read `bundle.sig` from bytes of unknown origin. where: the file, for messages. Raises BundleError."""
    fault = BundleError(f"{where} is not a signature that we wrote; get the bundle again from its source, or sign it")
    if len(content) > MAX_SIGNATURE_BYTES:
        raise fault
    try:
        parsed = SignatureFile.model_validate(json.loads(content.decode("ascii")))
        if any(base64.b64encode(record.content).decode("ascii") != record.value for record in parsed.signatures):
            raise fault
    except (ValidationError, ValueError, RecursionError, binascii.Error):
        raise fault from None
    if parsed.to_bytes() != content:  # one form only, so that a changed byte is a changed signature
        raise fault
    return parsed


def read_signatures(folder: Path) -> SignatureFile | None:
    """The signatures of a bundle folder, unchecked; none if it is not signed. Raises BundleError for a bad file."""
    path = folder / SIGNATURE_FILE
    if not path.exists() and not path.is_symlink():
        return None
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is a link or a special file; remove it")
    with explained(path, "read"), path.open("rb") as file:
        content = file.read(MAX_SIGNATURE_BYTES + 1)
    return parse_signatures(content, path)


def check_signature(signatures: SignatureFile | None, manifest: bytes, key: VerifyingKey, where: object) -> None:
    """Check that the owner of `key` signed these bytes of `bundle.json`. where: the bundle, for messages.

    Raises UnsignedBundleError, WrongKeyError or SignatureMismatchError.
    """
    if signatures is None:
        raise UnsignedBundleError(
            f"{where} is not signed; get a signed one from its source, or sign it with: open-autoglm sign --key KEY"
        )
    record = next((item for item in signatures.signatures if item.key_id == key.id), None)
    if record is None:
        signers = ", ".join(item.key_id for item in signatures.signatures)
        raise WrongKeyError(f"{where} is signed by {signers}, and not by {key.id}, the key that was given")
    if not key.accepts(record.content, manifest):
        raise SignatureMismatchError(
            f"{where}: the signature of {key.id} is not for this bundle.json; one was changed after signing, "
            "so do not use it: get it again from its source"
        )


def write_signature(folder: Path, manifest: bytes, key: SigningKey) -> SignatureFile:
    """Sign these bytes of `bundle.json` and put the signature into the folder; one of the same key is replaced.

    Signatures of others that no longer fit stay: it is not ours to remove them. Raises StorageError, BundleError.
    """
    old = read_signatures(folder)
    mine = SignatureRecord(key_id=key.verifying.id, value=base64.b64encode(key.sign(manifest)).decode("ascii"))
    kept = () if old is None else tuple(item for item in old.signatures if item.key_id != mine.key_id)
    if len(kept) >= _MAX_SIGNATURES:
        raise BundleError(f"{folder / SIGNATURE_FILE} has {len(kept)} signatures already; remove some")
    signed = SignatureFile(signatures=(*kept, mine))
    write_atomic(folder / SIGNATURE_FILE, signed.to_bytes())
    return signed
