# SPDX-License-Identifier: Apache-2.0
"""The engine's flags on the command line, as users type them, and what `doctor` says about the engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from open_autoglm.engine.backends import BACKENDS, availability, choose_backend
from tests.e2e.conftest import run_here

# Starts the command line in a process that lacks the native engine, as one is that was installed without a compiler.
WITHOUT_NATIVE = (
    "import sys; sys.modules['open_autoglm.engine.backends.native_backend'] = None\n"
    "from open_autoglm.cli import main; main()"
)


def run_without_native(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", WITHOUT_NATIVE, *map(str, arguments)]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False)


def test_doctor_names_the_engine_that_is_used_why_and_the_others() -> None:
    done = run_here("doctor", "--json")
    engine = json.loads(done.stdout.splitlines()[-1])["engine"]
    choice = choose_backend()
    assert engine["backend"] == choice.name
    assert choice.detail in engine["reason"]
    assert engine["backends"] == {
        name: {"available": works, "detail": detail} for name in BACKENDS for works, detail in [availability(name)]
    }
    if engine["backends"]["native"]["available"]:
        assert "instructions" in engine["reason"]
    without = json.loads(run_without_native("doctor", "--json").stdout.splitlines()[-1])["engine"]
    assert without["backend"] == "torch"
    assert "the native backend is not available" in without["reason"]
    assert not without["backends"]["native"]["available"]


def test_a_command_on_another_backend_says_so_in_one_line(bundle: Path) -> None:
    lines = "play the song\nbook a table\n"
    done = run_without_native("chat", bundle, text=lines)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("warning: the native backend is not available: ")
    assert said.endswith("; torch is used instead")
    asked = run_here("chat", bundle, "--backend", "torch", text=lines)
    assert asked.stderr == ""
    assert asked.stdout == done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ("--backend", "onnx"),
        ("--backend", "torch", "--kv-cache-dtype", "bfloat16", "--threads", "1"),
        ("--backend", "torch", "--dtype", "bfloat16", "--kv_cache_dtype", "float32"),
        ("--backend", "native", "--kv-cache-dtype", "int8", "--quantize", "int8"),
    ],
    ids=" ".join,
)
def test_each_backend_answers_in_the_formats_asked_for(bundle: Path, flags: tuple[str, ...]) -> None:
    works, reason = availability(flags[1])
    if not works:
        pytest.skip(reason)
    done = run_here("chat", bundle, *flags, "--json", text="play the song\n")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert json.loads(answer["answer"])["intent"] in ("PlayMusic", "GetWeather")


@pytest.mark.parametrize(
    ("flags", "code", "saying"),
    [
        (("--backend", "cuda"), 2, "auto"),
        (("--kv-cache-dtype", "int4"), 2, "bfloat16"),
        (("--backend", "torch", "--kv-cache-dtype", "int8"), 10, "no int8 KV cache"),
        (("--threads", "0"), 2, "threads"),
    ],
    ids=str,
)
def test_wrong_flags_are_one_line(bundle: Path, flags: tuple[str, ...], code: int, saying: str) -> None:
    done = run_here("chat", bundle, *flags)
    assert done.returncode == code
    assert saying in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_takes_vllms_flags_in_both_spellings(bundle: Path) -> None:
    """All are parsed; the port, which is wrong, is what is complained about."""
    for spell in (str, lambda flag: flag.replace("-", "_").replace("__", "--", 1)):
        flags = ("--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--kv-blocks")
        given = [part for flag in flags for part in (spell(flag), "32")]
        given += [spell("--kv-cache-dtype"), "int8", spell("--no-enable-prefix-caching"), "--quantization", "int8"]
        done = run_here("serve", bundle, *given, "--backend", "native", "--port", "70000")
        assert done.returncode == 2
        assert "70000" in done.stderr
