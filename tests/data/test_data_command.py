# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm data`, run to its end: tables for people, one JSON object for machines, errors without traces."""

import json
import subprocess
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.e2e.conftest import run_here

REVIEWS = "".join(f"第{n}条评论：房间很干净服务也不错,{['好评', '差评'][n % 2]}\n" for n in range(60))


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    with chdir(folder), patch.dict("os.environ", {"COLUMNS": "120"}):
        return run_here("data", *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "评论.csv").write_bytes(f"正文,好不好\n{REVIEWS}".encode("gb18030"))
    return tmp_path


def test_people_get_a_summary(folder: Path) -> None:
    done = run("评论.csv", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "classification",
        "2 short labels",
        "zh",
        "GB18030",
        "48 train, 6 valid, 6 test",
        "好评",
        "评论.csv:2",
    ):
        assert part in done.stdout


def test_machines_get_one_json_object_on_the_last_line(folder: Path) -> None:
    done = run("评论.csv", "--columns", "input=正文", "output=好不好", "--json", "--seed", "3", folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["task"] == "classification"
    assert found["split_sizes"] == {"train": 48, "valid": 6, "test": 6}
    assert found["output"]["counts"] == {"好评": 24, "差评": 24}
    assert found["files"][0]["columns"] == ["正文", "好不好"]
    assert found["findings"][0]["what"] == "read as GB18030"
    assert found["output_schema"]["labels"] == ["好评", "差评"]
    assert len(found["digest"]) == 64
    assert len(found["examples"]) == 3


def test_a_folder_with_splits_is_read_whole(folder: Path) -> None:
    for name, count in (("train", 40), ("dev", 10), ("test", 10)):
        rows = [{"text": f"the {name} text number {n}", "label": "ab"[n % 2]} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(run(".", "--json", folder=folder).stdout)
    assert found["split_sizes"] == {"train": 40, "valid": 10, "test": 10}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.csv"], 3, "none.csv does not exist"),
        (["评论.csv", "--columns", "input=正问 output=好不好"], 2, "did you mean '正文'?"),
        (["评论.csv", "--task", "poetry"], 2, "unknown task 'poetry'"),
        (["评论.csv", "--columns", "input"], 2, "is not like input=NAME output=NAME"),
        (["评论.csv", "--task", "extraction"], 3, "评论.csv:2: the answer is not a JSON object"),
    ],
)
def test_faults_are_one_line_and_an_exit_code(folder: Path, arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments, "--json", folder=folder)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stdout.splitlines()
    assert message in json.loads(line)["error"]["message"]


def test_help_shows_how_with_chinese_columns(folder: Path) -> None:
    done = run("--help", folder=folder)
    assert "input=问题 output=回答" in done.stdout
