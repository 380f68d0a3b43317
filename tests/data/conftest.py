# SPDX-License-Identifier: Apache-2.0
"""Snips, prepared once for all tests of the room."""

from pathlib import Path

import pytest

from open_autoglm.data import PreparedData, prepare

SNIPS = Path(__file__).parents[2] / "examples" / "snips"


@pytest.fixture(scope="session")
def snips() -> PreparedData:
    return prepare(SNIPS / "train.jsonl", valid=SNIPS / "valid.jsonl", test=SNIPS / "test.jsonl")
