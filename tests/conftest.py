# SPDX-License-Identifier: Apache-2.0
"""One thread for all tests: sums in one order, and no two processes that spin for the same core. No test writes to the
user's cache folder."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import certifi
import pytest

from tests.thoroughness import THOROUGH

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Each file of ours is compiled once, and not again in each of the hundreds of processes that the tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "OPEN_AUTOGLM_CACHE" not in os.environ:
    os.environ["OPEN_AUTOGLM_CACHE"] = tempfile.mkdtemp(prefix="open-autoglm-tests-")
    atexit.register(shutil.rmtree, os.environ["OPEN_AUTOGLM_CACHE"], ignore_errors=True)
if "PYTEST_XDIST_WORKER" not in os.environ:  # those inherit it
    # httpx reads all authorities for each client that it makes: 50 ms for a request. No test leaves this machine.
    _first, _end, _ = Path(certifi.where()).read_text("utf-8").partition("-----END CERTIFICATE-----\n")
    _file = tempfile.NamedTemporaryFile("w", suffix=".pem")  # noqa: SIM115 - until the end of the tests
    _file.write(_first + _end)
    _file.flush()
    os.environ["SSL_CERT_FILE"] = _file.name

_LONG = (
    "tests/e2e/test_build.py",  # makes the build that the others in its folder share
    "tests/native/",
    "tests/serve/test_playground.py",
    "tests/pipeline/test_pipeline_kill.py",
    "tests/pipeline/triggers/",
    "tests/serve/test_connection_limits.py",
    "tests/compress/test_quantize_checkpoint.py",
    "tests/pipeline/",
    "tests/serve/pipelines/",
    "tests/serve/grpc/test_life.py",
    "tests/serve/test_s",
    "tests/serve/test_tools.py",
    "tests/plugins/",
    "tests/e2e/",
    "tests/engine/test_c",
    "tests/search/",
    "tests/serve/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no core waits for them at the end (with --no-loadscope-reorder)."""
    if not THOROUGH:
        skip = pytest.mark.skip(reason="takes long: `make thorough` runs it")
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(skip)
    items.sort(key=lambda item: next((i for i, name in enumerate(_LONG) if item.nodeid.startswith(name)), len(_LONG)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """What takes all cores in this process, as an engine and most commands do, leaves the tests after it only one."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """What collecting the tests makes stays to the end: the garbage collector need not go over it again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
