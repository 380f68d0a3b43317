# SPDX-License-Identifier: Apache-2.0
"""Signatures of the Open Model Signing format, by the `model-signing` package, with a key and offline.

Source: https://github.com/ossf/model-signing-spec
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle.keys import PASSPHRASE_VARIABLE, key_id, read_key_file
from open_autoglm.bundle.signature import OMS_SIGNATURE_FILE, SIGNATURE_FILE
from open_autoglm.errors import BundleError, ConfigurationError, SignatureMismatchError, UnsignedBundleError
from open_autoglm.storage import write_atomic

_MAX_SIGNATURE: Final = 64 * 1024 * 1024


def sign_oms(folder: Path, key: Path, environment: Mapping[str, str]) -> str:
    """Write `model.sig` over all files of a bundle, but for the two signatures. Returns the key's id.

    key: a private P-256, P-384 or P-521 key in PEM form. Raises ConfigurationError for a key that it cannot be done
    with, or without the `model-signing` package; StorageError when the disk refuses.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    library = _library()
    content = read_key_file(key, private=True)
    passphrase = environment.get(PASSPHRASE_VARIABLE, "").encode("utf-8", "surrogateescape") or None
    passphrase = passphrase if b"ENCRYPTED" in content else None
    try:
        private = load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigurationError(
            f"{key} is not a private key in PEM form, or {PASSPHRASE_VARIABLE} is not its passphrase"
        ) from None
    if not isinstance(private, EllipticCurvePrivateKey):
        raise ConfigurationError(
            f"{key}: Open Model Signing takes P-256 keys; make one with: open-autoglm keygen NAME --algorithm p256"
        )
    signer: Any = library.signing.Config().set_hashing_config(_hashing(library, folder))
    # Written elsewhere first: the library hashes all that lies in the folder.
    with tempfile.TemporaryDirectory() as elsewhere:
        written = Path(elsewhere) / OMS_SIGNATURE_FILE
        signer.use_elliptic_key_signer(private_key=key, password=passphrase).sign(folder, written)
        write_atomic(folder / OMS_SIGNATURE_FILE, written.read_bytes())
    return key_id(private.public_key())


def verify_oms(folder: Path, key: Path) -> str:
    """Check `model.sig` against all files of a bundle, but for the two signatures. Returns the key's id.

    Raises UnsignedBundleError without one, SignatureMismatchError when it is not by this key or not for these files,
    ConfigurationError for a key that it cannot be done with, or without the `model-signing` package.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    library = _library()
    try:
        public = load_pem_public_key(read_key_file(key, private=False))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{key} is not a public key in PEM form") from None
    if not isinstance(public, EllipticCurvePublicKey):
        raise ConfigurationError(f"{key}: Open Model Signing takes P-256 keys, and this is another")
    signature = folder / OMS_SIGNATURE_FILE
    if not signature.is_file() or signature.is_symlink():
        raise UnsignedBundleError(f"{folder} has no {OMS_SIGNATURE_FILE}; sign it with: open-autoglm sign --oms")
    if signature.stat().st_size > _MAX_SIGNATURE:
        raise BundleError(f"{signature} is larger than any signature")
    # What is not signed is our decision, not the signature's: it could leave out bundle.json.
    verifier: Any = library.verifying.Config().set_hashing_config(_hashing(library, folder))
    logging.getLogger("model_signing").setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            verifier.use_elliptic_key_verifier(public_key=key).verify(folder, signature)
    except InvalidSignature:
        raise SignatureMismatchError(f"{signature} was not made by {key_id(public)}") from None
    except Exception as error:  # noqa: BLE001 - the library raises what its parsers raise
        reason = str(error).strip() or type(error).__name__
        raise SignatureMismatchError(f"{signature} is not for these files, or not by this key: {reason}") from None
    return key_id(public)


def _hashing(library: Any, folder: Path) -> Any:
    ignored = [folder / OMS_SIGNATURE_FILE, folder / SIGNATURE_FILE]
    return library.hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _library() -> Any:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError:
        raise ConfigurationError(
            "Open Model Signing needs a package that is not here; install it with: pip install 'open-autoglm[sigstore]'"
        ) from None
    return model_signing
