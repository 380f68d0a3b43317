# SPDX-License-Identifier: Apache-2.0
"""`serve --require-signature`: only what the owner of a key signed is served."""

import shutil
from pathlib import Path

import httpx
import pytest

from open_autoglm.bundle import sign_bundle
from open_autoglm.bundle.keys import create_key_files, read_signing_key
from open_autoglm.engine import LLM
from open_autoglm.errors import SignatureMismatchError, UnsignedBundleError, WrongKeyError
from tests.serve.test_programs import COMMAND, ask, run, started


@pytest.fixture
def signed(extraction_bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A signed copy of a bundle, and the public key."""
    bundle = tmp_path / "bundle"
    shutil.copytree(extraction_bundle, bundle)
    key = create_key_files(tmp_path / "release", {})
    sign_bundle(bundle, read_signing_key(key.private, {}))
    return bundle, key.public


def test_a_signed_bundle_is_served(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    with started(*COMMAND, "serve", bundle, "--port", "0", "--require-signature", public) as (_, url):
        assert ask(url).status_code == httpx.codes.OK


def test_others_are_refused_before_their_weights_are_read(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    stranger = create_key_files(tmp_path / "stranger", {})
    (bundle / "model.safetensors").write_bytes(b"not weights")  # the signature is looked at first
    with pytest.raises(WrongKeyError):
        LLM(bundle, require_signature=stranger.public)
    manifest = bundle / "bundle.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(SignatureMismatchError):
        LLM(bundle, require_signature=public)
    (bundle / "bundle.sig").unlink()
    with pytest.raises(UnsignedBundleError):
        LLM(bundle, require_signature=public)
    done = run("serve", str(bundle), "--port", "0", "--require-signature", str(public))
    assert done.returncode == 20, done.stderr
    assert "not signed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_is_no_bundle_that_could_be_signed(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    for name in ("bundle.json", "bundle.sig"):
        (bundle / name).unlink()
    with pytest.raises(UnsignedBundleError, match="checkpoint"):
        LLM(bundle, require_signature=public)
