# SPDX-License-Identifier: Apache-2.0
"""Keys for signing bundles offline, as PEM files that OpenSSL reads too."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from open_autoglm.errors import ConfigurationError
from open_autoglm.storage import explained, sync_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Algorithm = Literal["ed25519", "p256"]
PASSPHRASE_VARIABLE: Final = "OPEN_AUTOGLM_KEY_PASSPHRASE"  # noqa: S105 - a name
"""Where the passphrase of a private key is looked for, when a key is made and when it is used."""
_MAX_KEY_FILE: Final = 64 * 1024


@dataclass(frozen=True)
class VerifyingKey:
    """The public half of an Ed25519 key. id: see `key_id`."""

    id: str
    public: Ed25519PublicKey

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Whether the private half made `signature` for exactly these bytes."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """Both halves of an Ed25519 key."""

    verifying: VerifyingKey
    private: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature; always the same for the same message."""
        return self.private.sign(message)


@dataclass(frozen=True)
class KeyFiles:
    """Where a new key lies, its id, and whether a passphrase protects its private half."""

    private: Path
    public: Path
    id: str
    is_encrypted: bool


def create_key_files(name: Path, environment: Mapping[str, str], algorithm: Algorithm = "ed25519") -> KeyFiles:
    """Make a key: `NAME.key`, which only its owner reads, and `NAME.pub`, which may go anywhere.

    environment: the private half is encrypted with its OPEN_AUTOGLM_KEY_PASSPHRASE if there is one.
    algorithm: `ed25519` for our own signatures, `p256` for those of Open Model Signing.
    Raises ConfigurationError if one of the files is there already, StorageError when the disk refuses.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if not name.name or name.name == "..":
        raise ConfigurationError(f"'{name}' is not a name for a key; give one such as release")
    private_path, public_path = name.with_name(name.name + ".key"), name.with_name(name.name + ".pub")
    for path in (private_path, public_path):
        if path.exists() or path.is_symlink():
            raise ConfigurationError(
                f"{path} is there already, and a lost key cannot be made again; choose another name"
            )
    key = ed25519.Ed25519PrivateKey.generate() if algorithm == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    passphrase = _passphrase(environment)
    protection = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase)
    _write_new(
        private_path,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection),
        mode=0o600,
    )
    _write_new(
        public_path,
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        mode=0o644,
    )
    return KeyFiles(private_path, public_path, key_id(public), passphrase is not None)


def read_signing_key(path: Path, environment: Mapping[str, str]) -> SigningKey:
    """The private key in a PEM file.

    Raises ConfigurationError for a file that others can read, that is not an Ed25519 key, or whose passphrase is
    missing or wrong; StorageError when it cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_key_file(path, private=True)
    passphrase = _passphrase(environment)
    try:
        key = load_pem_private_key(content, passphrase if b"ENCRYPTED" in content else None)
    except TypeError:
        raise ConfigurationError(f"{path} is protected by a passphrase; give it in {PASSPHRASE_VARIABLE}") from None
    except (ValueError, UnsupportedAlgorithm):
        hint = f", or the passphrase in {PASSPHRASE_VARIABLE} is wrong" if b"ENCRYPTED" in content else ""
        raise ConfigurationError(f"{path} is not a private key in PEM form{hint}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key; make one with: open-autoglm keygen NAME")
    return SigningKey(VerifyingKey(key_id(key.public_key()), key.public_key()), key)


def read_verifying_key(path: Path) -> VerifyingKey:
    """The public key in a PEM file. Raises ConfigurationError if it is none, StorageError when it cannot be read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = read_key_file(path, private=False)
    if b"PRIVATE KEY" in content:
        raise ConfigurationError(f"{path} is a private key, which only the signer needs; give its .pub file")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{path} is not a public key in PEM form; give the .pub file of a key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key, with which bundles are signed")
    return VerifyingKey(key_id(key), key)


def key_id(public: object) -> str:
    """What a key is called: `SHA256:` and the digest of its DER form in base64, as SSH writes fingerprints."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(public, Ed25519PublicKey | EllipticCurvePublicKey):
        raise TypeError("not a public key")
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode("ascii").rstrip("=")


def _passphrase(environment: Mapping[str, str]) -> bytes | None:
    return environment.get(PASSPHRASE_VARIABLE, "").encode("utf-8", "surrogateescape") or None


def read_key_file(path: Path, *, private: bool) -> bytes:
    """The content of a key file. private: others must not be able to read it.

    Raises ConfigurationError for a file that is no key or that others can read, StorageError when it cannot be read.
    """
    with explained(path, "read"), path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path} is not a file with a key")
        if private and status.st_mode & 0o077:
            raise ConfigurationError(f"others can read {path}; protect it with: chmod 600 {path}")
        content = file.read(_MAX_KEY_FILE + 1)
    if len(content) > _MAX_KEY_FILE:
        raise ConfigurationError(f"{path} is larger than any key")
    return content


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Never over another file, and readable by nobody else even for a moment."""
    with explained(path, "write"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            raise ConfigurationError(f"{path} is there already; choose another name") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
