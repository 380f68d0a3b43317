# SPDX-License-Identifier: Apache-2.0
"""Progress where there is no terminal: lines now and then, with the share that is done."""

import pytest

from open_autoglm import progress
from open_autoglm.progress import ProgressBar


@pytest.fixture
def every_update_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)


@pytest.mark.usefixtures("every_update_is_a_line")
def test_the_share_follows_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("train", 10) as bar:
        bar.update(5, "step 5")
        bar.expect(20)
        bar.update(5, "step 5")
        bar.update(30)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("%")[0].split()[-1] for line in lines] == ["50", "25", "100"]
    assert lines[0].startswith("train:")
    assert "step 5, about" in lines[0]


def test_a_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    long = "data: " + "a reason, " * 30
    with ProgressBar("data", 1) as bar:
        bar.say(long)
    assert capsys.readouterr().err == long + "\n"


@pytest.mark.usefixtures("every_update_is_a_line")
def test_nothing_is_said_of_the_time_left_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("train", 10) as bar:
        bar.update(0, "step 0")
    assert capsys.readouterr().err == "train:   0% step 0\n"
