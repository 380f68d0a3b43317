# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while a command is still being loaded: one line and exit code 130, whatever was being imported."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.engine.tiny_bundle import DIALOGUE, make_bundle

# A real signal, at a moment that is the same each time: when a module is about to be looked for.
CODE = """
import os, signal, sys
from open_autoglm.cli import main

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)

moment = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupting())
main()
"""
MOMENTS = ("typer", "open_autoglm.cli.serve", "open_autoglm.serve.server", "uvicorn.protocols.http")
MORE_MOMENTS = (
    "open_autoglm.errors",
    "open_autoglm.serve.configuration",
    "uvicorn",
    "open_autoglm.serve.routes.chat_route",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("talker"), DIALOGUE)


@pytest.mark.parametrize(
    "moment", [*MOMENTS, *(pytest.param(moment, marks=pytest.mark.thorough) for moment in MORE_MOMENTS)]
)
def test_a_command_that_is_interrupted_says_so_in_a_line(bundle: Path, moment: str) -> None:
    words = [sys.executable, "-c", CODE, moment, "serve", str(bundle), "--port", "0", "--threads", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (128 + signal.SIGINT, "stopped\n", "")
