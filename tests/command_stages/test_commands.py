# SPDX-License-Identifier: Apache-2.0
"""What the product's commands as stages decide by themselves; tests/e2e/test_command_stages.py runs them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from open_autoglm.command_stages.evaluate import Evaluate, EvaluateConfig
from open_autoglm.command_stages.output_log import output_to_log
from open_autoglm.command_stages.quantize import QuantizeConfig
from open_autoglm.errors import PipelineError


def test_what_a_command_and_its_children_print_is_in_the_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO"), output_to_log(logging.getLogger("test")):
        os.write(2, "训练: 50%\n".encode())
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    os.write(2, b"after\n")
    assert [record.getMessage() for record in caplog.records] == ["训练: 50%", "from a child"]
    assert capfd.readouterr() == ("", "after\n")


def test_a_metric_that_is_not_reached_ends_the_run() -> None:
    def compare(**bounds: dict[str, float]) -> None:
        Evaluate(EvaluateConfig.model_validate({"data": "x", **bounds}))._compare({"exact_match": 0.5, "f1": 0.7})  # pyright: ignore[reportPrivateUsage]

    compare(least={"exact_match": 0.5}, most={"f1": 0.7})
    with pytest.raises(PipelineError, match=r"exact_match is 0\.5000, below the 0\.6"):
        compare(least={"exact_match": 0.6})
    with pytest.raises(PipelineError, match=r"f1 is 0\.7000, above the 0\.1"):
        compare(most={"f1": 0.1})
    with pytest.raises(PipelineError, match="no metric 'exact_mtach'; did you mean 'exact_match'"):
        compare(least={"exact_mtach": 0.6})
    with pytest.raises(PipelineError, match="no metric"):
        compare(least={"nothing": float("nan")})
    with pytest.raises(ValidationError, match="needs texts"):
        QuantizeConfig(out=Path("x"))
