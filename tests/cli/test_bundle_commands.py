# SPDX-License-Identifier: Apache-2.0
"""The commands about bundles: what they say, and their exit codes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tests.bundle.small_bundle import make_bundle

import open_autoglm
from open_autoglm import cli
from open_autoglm.errors import ConfigurationError


class Said:
    """What a command printed, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in err

    @property
    def json(self) -> dict:
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`open-autoglm ARGUMENTS` in this process."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["open-autoglm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def test_inspect_says_licence_signers_and_lineage(say, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    shown = say("inspect", bundle)
    assert shown.code == 0
    for text in ("tickets", "Apache-2.0", "not signed", "test_accuracy: 0.7500", "seed: 7", "target:"):
        assert text in shown.out
    assert say("inspect", bundle, "--json").json["signed_by"] == []


def test_the_way_of_a_signed_bundle(say, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    key, public = tmp_path / "release.key", tmp_path / "release.pub"
    made = say("keygen", tmp_path / "release", "--json")
    assert made.code == 0
    key_id = made.json["id"]
    assert say("keygen", tmp_path / "release").code == 2
    assert say("verify", bundle).code == 0
    unsigned = say("verify", bundle, "--key", public, "--json")
    assert (unsigned.code, unsigned.json["error"]["type"]) == (20, "UnsignedBundleError")
    signed = say("sign", bundle, "--key", key)
    assert signed.code == 0
    assert key_id in signed.out
    assert say("verify", bundle, "--key", public, "--json").json["signature_verified"] == key_id
    assert key_id in say("inspect", bundle).out
    say("keygen", tmp_path / "other")
    assert say("verify", bundle, "--key", tmp_path / "other.pub").code == 21
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace("0.75", "0.99"))
    assert say("verify", bundle, "--key", public).code == 22
    (bundle / "bundle.json").write_text(text)
    (bundle / "inner" / "note.txt").write_text("你坏")
    assert say("verify", bundle, "--key", public).code == 5
    assert say("sign", bundle, "--key", key).code == 5


def test_keys_that_cannot_be_used_are_said_so(say, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert say("verify", bundle, "--oms").code == 2
    assert say("verify", bundle, "--key", tmp_path / "nothing.pub").code == 6
    (tmp_path / "junk.pub").write_text("junk")
    assert say("verify", bundle, "--key", tmp_path / "junk.pub").code == 2


def test_diff_ends_with_1_when_bundles_differ(say, tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path, "a"), make_bundle(tmp_path, "b")
    same = say("diff", first, second, "--json")
    assert (same.code, same.json["equal"], same.json["differences"]) == (0, True, [])
    third = make_bundle(tmp_path, "c", metrics={"test_accuracy": 0.5}, name="other")
    other = say("diff", first, third)
    assert other.code == 1
    assert "~ metrics.test_accuracy: 0.75 -> 0.5 (-0.25)" in other.out
    assert "- metrics.valid_accuracy: 0.8" in other.out
    assert '~ model.name: "tickets" -> "other"' in other.out
    assert say("diff", first, tmp_path / "nothing").code == 5


def test_a_licence_is_a_few_words(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\na,b\n")
    for text in (" ", "a\nb", "x" * 300):
        with pytest.raises(ConfigurationError, match="--license"):
            open_autoglm.build(tmp_path / "data.csv", out=tmp_path / "run", license=text)
    assert not (tmp_path / "run").exists()


def test_push_and_pull_by_the_commands(say, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    pushed = say("push", bundle, f"{tmp_path}/store:1.0", "--json")
    assert pushed.code == 0
    exact = f"{tmp_path}/store@{pushed.json['digest']}"
    assert say("pull", exact, "--out", tmp_path / "copy").code == 0
    assert say("diff", bundle, tmp_path / "copy").code == 0
    assert say("pull", f"{tmp_path}/store:2.0", "--out", tmp_path / "none").code == 23
    assert say("pull", f"{tmp_path}/store:2.0", "--out", tmp_path / "copy").code == 2
    assert say("push", bundle, "gopher://x/y:1").code == 2


def test_package_by_the_command(say, tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx", reason="the extra 'package' is not installed")
    if not native_engine_is_here():
        pytest.skip("the compiled engine is not here")
    made = say("package", make_bundle(tmp_path), "--out", tmp_path / "context", "--json")
    assert made.code == 0, made.err
    assert (tmp_path / "context" / "Dockerfile").is_file()
    assert made.json["image"].startswith("tickets:")
    assert say("package", tmp_path / "bundle", "--out", tmp_path / "context").code == 2


def native_engine_is_here() -> bool:
    return importlib.util.find_spec("open_autoglm.engine._native") is not None
