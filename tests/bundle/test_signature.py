# SPDX-License-Identifier: Apache-2.0
"""Signatures: by the right key, over the exact bytes, and checkable without us."""

import base64
import hashlib
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from open_autoglm.bundle import open_bundle, sign_bundle
from open_autoglm.bundle.keys import (
    PASSPHRASE_VARIABLE,
    KeyFiles,
    create_key_files,
    read_signing_key,
    read_verifying_key,
)
from open_autoglm.errors import (
    BundleError,
    ConfigurationError,
    SignatureMismatchError,
    UnsignedBundleError,
    WrongKeyError,
)
from tests.bundle.small_bundle import make_bundle


def make_key(folder: Path, name: str = "release", environment: dict[str, str] | None = None) -> KeyFiles:
    return create_key_files(folder / name, environment or {})


def signed(folder: Path) -> tuple[Path, KeyFiles]:
    bundle, key = make_bundle(folder), make_key(folder)
    sign_bundle(bundle, read_signing_key(key.private, {}))
    return bundle, key


def test_a_signed_bundle_opens_with_the_key_and_without(tmp_path: Path) -> None:
    bundle, key = signed(tmp_path)
    opened = open_bundle(bundle, key=read_verifying_key(key.public))
    assert opened.signatures is not None
    assert [record.key_id for record in opened.signatures.signatures] == [key.id]
    assert open_bundle(bundle).signatures == opened.signatures
    assert "bundle.sig" not in opened.manifest.files


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_agrees_on_the_signature_and_the_key_id(tmp_path: Path) -> None:
    bundle, key = signed(tmp_path)
    record = json.loads((bundle / "bundle.sig").read_text())["signatures"][0]
    raw = tmp_path / "raw.sig"
    raw.write_bytes(base64.b64decode(record["value"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key.public, "-rawin", "-sigfile", raw, "-in"]
    assert subprocess.run([*command, bundle / "bundle.json"], capture_output=True, check=False).returncode == 0
    other = tmp_path / "other.json"
    other.write_bytes((bundle / "bundle.json").read_bytes() + b" ")
    assert subprocess.run([*command, other], capture_output=True, check=False).returncode != 0
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", key.public, "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert key.id == "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def test_each_way_of_not_being_signed_is_an_error_of_its_own(tmp_path: Path) -> None:
    bundle, key = signed(tmp_path)
    trusted = read_verifying_key(key.public)
    stranger = make_key(tmp_path, "stranger")
    with pytest.raises(WrongKeyError, match="not by") as caught:
        open_bundle(bundle, key=read_verifying_key(stranger.public))
    assert key.id in str(caught.value)
    assert stranger.id in str(caught.value)
    manifest = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(manifest.replace("0.75", "0.95"))
    open_bundle(bundle)  # nothing but the signature can know
    with pytest.raises(SignatureMismatchError, match="changed after signing"):
        open_bundle(bundle, key=trusted)
    (bundle / "bundle.json").write_text(manifest)
    (bundle / "bundle.sig").rename(tmp_path / "taken.sig")
    with pytest.raises(UnsignedBundleError, match="not signed"):
        open_bundle(bundle, key=trusted)
    codes = {error.exit_code for error in (UnsignedBundleError, WrongKeyError, SignatureMismatchError, BundleError)}
    assert len(codes) == 4


def test_a_key_id_of_another_does_not_help(tmp_path: Path) -> None:
    """A forger signs with a key of their own under the name of ours."""
    bundle, key = signed(tmp_path)
    forger = make_key(tmp_path, "forger")
    (bundle / "bundle.sig").unlink()
    sign_bundle(bundle, read_signing_key(forger.private, {}))
    text = (bundle / "bundle.sig").read_text()
    (bundle / "bundle.sig").write_text(text.replace(forger.id, key.id))
    with pytest.raises(SignatureMismatchError):
        open_bundle(bundle, key=read_verifying_key(key.public))


def test_several_may_sign_and_signing_again_changes_nothing(tmp_path: Path) -> None:
    bundle, first = signed(tmp_path)
    once = (bundle / "bundle.sig").read_bytes()
    sign_bundle(bundle, read_signing_key(first.private, {}))
    assert (bundle / "bundle.sig").read_bytes() == once
    second = make_key(tmp_path, "second")
    sign_bundle(bundle, read_signing_key(second.private, {}))
    for key in (first, second):
        open_bundle(bundle, key=read_verifying_key(key.public))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\x00" * 70_000,
        b'{"version": 1, "signatures": []}',
        b"[" * 5000,
        b'{"version": 2, "signatures": []}',
    ],
)
def test_a_signature_file_that_is_none_is_refused_even_unasked(tmp_path: Path, content: bytes) -> None:
    bundle = make_bundle(tmp_path)
    (bundle / "bundle.sig").write_bytes(content)
    with pytest.raises(BundleError, match="not a signature"):
        open_bundle(bundle)


def test_a_signature_has_one_form(tmp_path: Path) -> None:
    bundle, _ = signed(tmp_path)
    text = (bundle / "bundle.sig").read_text()
    (bundle / "bundle.sig").write_text(text + "\n")
    with pytest.raises(BundleError, match="not a signature"):
        open_bundle(bundle)
    (bundle / "bundle.sig").unlink()
    (bundle / "bundle.sig").symlink_to(tmp_path / "release.pub")
    with pytest.raises(BundleError, match="link"):
        open_bundle(bundle)


def test_a_damaged_bundle_is_not_signed(tmp_path: Path) -> None:
    bundle, key = make_bundle(tmp_path), make_key(tmp_path)
    (bundle / "model.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        sign_bundle(bundle, read_signing_key(key.private, {}))
    assert not (bundle / "bundle.sig").exists()


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    before = key.private.read_bytes()
    with pytest.raises(ConfigurationError, match="there already"):
        make_key(tmp_path)
    key.private.unlink()
    with pytest.raises(ConfigurationError, match=r"release\.pub is there already"):
        make_key(tmp_path)
    assert not key.private.exists()
    key.private.write_bytes(before)
    key.private.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_signing_key(key.private, {})


def test_a_passphrase_protects_the_private_half(tmp_path: Path) -> None:
    key = make_key(tmp_path, environment={PASSPHRASE_VARIABLE: "correct horse"})
    assert key.is_encrypted
    assert b"ENCRYPTED" in key.private.read_bytes()
    with pytest.raises(ConfigurationError, match=PASSPHRASE_VARIABLE):
        read_signing_key(key.private, {})
    with pytest.raises(ConfigurationError, match="wrong"):
        read_signing_key(key.private, {PASSPHRASE_VARIABLE: "battery"})
    assert read_signing_key(key.private, {PASSPHRASE_VARIABLE: "correct horse"}).verifying.id == key.id


def test_the_wrong_kind_of_key_file_is_said_so(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    with pytest.raises(ConfigurationError, match="private key, which only the signer needs"):
        read_verifying_key(key.private)
    with pytest.raises(ConfigurationError, match="not a private key"):
        key.public.chmod(0o600)
        read_signing_key(key.public, {})
    p256 = create_key_files(tmp_path / "oms", {}, "p256")
    with pytest.raises(ConfigurationError, match="Ed25519"):
        read_signing_key(p256.private, {})
    with pytest.raises(ConfigurationError, match="Ed25519"):
        read_verifying_key(p256.public)
    with pytest.raises(ConfigurationError, match=r"not a file|cannot"):
        read_verifying_key(Path("/dev/null"))


def test_open_model_signing_by_its_own_program(tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="the extra 'sigstore' is not installed")
    import model_signing.verifying

    from open_autoglm.bundle.open_model_signing import sign_oms, verify_oms

    bundle, _ = signed(tmp_path)
    key = create_key_files(tmp_path / "oms", {}, "p256")
    assert sign_oms(bundle, key.private, {}) == key.id
    assert open_bundle(bundle).signatures is not None
    assert verify_oms(bundle, key.public) == key.id
    model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key.public).verify(
        bundle, bundle / "model.sig"
    )
    stranger = create_key_files(tmp_path / "stranger", {}, "p256")
    with pytest.raises(SignatureMismatchError):
        verify_oms(bundle, stranger.public)
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace("0.75", "0.95"))
    with pytest.raises(SignatureMismatchError):
        verify_oms(bundle, key.public)
    (bundle / "bundle.json").write_text(text)
    verify_oms(bundle, key.public)
    (bundle / "model.sig").write_text("{}")
    with pytest.raises(SignatureMismatchError):
        verify_oms(bundle, key.public)
    (bundle / "model.sig").unlink()
    with pytest.raises(UnsignedBundleError):
        verify_oms(bundle, key.public)
