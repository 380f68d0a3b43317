# SPDX-License-Identifier: Apache-2.0
"""Every format and encoding is read, and every broken file gets an error that names the place."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.data.readers import read_rows
from open_autoglm.data.rows import FileRows
from open_autoglm.errors import DataError

CHINESE = "这家酒店的服务非常好，房间干净，早餐丰富。"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def numbers(file: FileRows) -> list[int]:
    return [row.number for row in file]


def repairs(file: FileRows) -> list[tuple[str, int | None]]:
    return [(what, row) for _, what, _, row in file.repairs]


def test_json_lines_are_numbered_as_an_editor_does_and_blank_lines_are_counted(tmp_path: Path) -> None:
    file = read_rows(write(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2, "b": "x"}\r\n'))
    assert [(row.number, row.values) for row in file] == [(1, {"a": 1}), (3, {"a": 2, "b": "x"})]
    assert file.columns == ("a", "b")
    assert repairs(file) == [("blank line skipped", 2)]


def test_line_separators_of_unicode_do_not_end_a_json_line(tmp_path: Path) -> None:
    file = read_rows(write(tmp_path, "a.jsonl", '{"a": "x\u2028y\x85z"}\n{"a": "b"}\n'))
    assert [row.values for row in file] == [{"a": "x\u2028y\x85z"}, {"a": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "format_"),
    [
        ("a.json", '[{"a": 1}, {"a": 2}]', "json"),
        ("a.json", '{"version": "1", "data": [{"a": 1}, {"a": 2}]}', "json"),
        ("a.json", '{"rows": [{"a": 1}, {"a": 2}], "names": ["x"]}', "json"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("a.jsonl", '[\n  {"a": 1},\n  {"a": 2}\n]', "json"),
        ("a.dat", '{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("a", '[{"a": 1}, {"a": 2}]', "json"),
    ],
)
def test_json_is_known_by_what_it_holds(tmp_path: Path, name: str, content: str, format_: str) -> None:
    file = read_rows(write(tmp_path, name, content))
    assert file.format == format_
    assert [row.values for row in file] == [{"a": 1}, {"a": 2}]


def test_squad_nesting_becomes_one_row_per_question(tmp_path: Path) -> None:
    paragraphs = [
        {
            "context": "北京是中国的首都。",
            "qas": [
                {"question": "中国的首都是哪里？", "answers": [{"text": "北京", "answer_start": 0}]},
                {"question": "谁？", "answers": []},
            ],
        }
    ]
    file = read_rows(write(tmp_path, "a.json", json.dumps({"version": "v1.0", "data": [{"paragraphs": paragraphs}]})))
    assert file.format == "squad"
    assert [row.values for row in file] == [
        {"context": "北京是中国的首都。", "question": "中国的首都是哪里？", "answers": ["北京"]},
        {"context": "北京是中国的首都。", "question": "谁？", "answers": []},
    ]


def test_csv_records_are_numbered_by_the_line_they_start_on(tmp_path: Path) -> None:
    content = 'text,category\r\n"two\r\nlines, and a comma",a\r\nplain,b\r\n\r\n"say ""hi""",a\r\n'
    file = read_rows(write(tmp_path, "a.csv", content))
    assert [(row.number, row.values) for row in file] == [
        (2, {"text": "two\r\nlines, and a comma", "category": "a"}),
        (4, {"text": "plain", "category": "b"}),
        (6, {"text": 'say "hi"', "category": "a"}),
    ]
    assert repairs(file) == [("blank line skipped", 5)]


ROWS = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), st.integers(0, 9)), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["the text", "the number"])
    writer.writerows((f"«{value}»", f"<{number}>") for value, number in rows)
    file = read_rows(write(tmp_path_factory.mktemp("csv"), "a.csv", text.getvalue()))
    assert [row.values for row in file] == [{"the text": f"«{v}»", "the number": f"<{n}>"} for v, n in rows]


def test_tsv_keeps_stray_quotes_and_takes_csv_quoting_where_it_is_used(tmp_path: Path) -> None:
    stray = read_rows(write(tmp_path, "a.tsv", f'label\ttext_a\n1\t"{CHINESE}\n0\t一个字"小"!\n'))
    assert [row.values for row in stray] == [
        {"label": "1", "text_a": f'"{CHINESE}'},
        {"label": "0", "text_a": '一个字"小"!'},
    ]
    quoted = read_rows(write(tmp_path, "b.tsv", 'label\ttext\n1\t"say ""hi"""\n0\t"a\tb"\n1\tplain\n'))
    assert [row.values for row in quoted] == [
        {"label": "1", "text": 'say "hi"'},
        {"label": "0", "text": "a\tb"},
        {"label": "1", "text": "plain"},
    ]


def test_another_delimiter_and_a_missing_header_are_noticed_and_noted(tmp_path: Path) -> None:
    semicolons = read_rows(write(tmp_path, "a.csv", "text;label\nhello;x\nbye;y\n"))
    assert semicolons.columns == ("text", "label")
    assert repairs(semicolons) == [("fields separated by semicolons", None)]
    headless = read_rows(write(tmp_path, "b.csv", "how are you,greet\nhi there,greet\nsee you,leave\nhey,greet\n"))
    assert headless.columns == ("column_1", "column_2")
    assert numbers(headless) == [1, 2, 3, 4]
    assert repairs(headless)[0][0].startswith("no header line found")
    again = read_rows(write(tmp_path, "c.csv", "text,label\nhello,x\ntext,label\nbye,y\n"))
    assert numbers(again) == [2, 4]
    assert repairs(again) == [("header line that comes again skipped", 3)]


def test_parquet_rows_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    polars.DataFrame({"text": ["你好", None], "labels": [["a", "b"], []]}).write_parquet(path)
    assert [row.values for row in read_rows(path)] == [
        {"text": "你好", "labels": ["a", "b"]},
        {"text": None, "labels": []},
    ]


@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8 with a byte order mark"),
        ("utf-16", "UTF-16"),
        ("gb18030", "GB18030"),
    ],
)
def test_encodings_are_told_apart(tmp_path: Path, codec: str, encoding: str) -> None:
    lines = f'{{"问题": "{CHINESE}", "标签": "好"}}\n' * 3
    file = read_rows(write(tmp_path, "a.jsonl", lines.encode(codec)))
    assert file.encoding == encoding
    assert [row.values for row in file] == [{"问题": CHINESE, "标签": "好"}] * 3
    assert repairs(file) == ([] if codec == "utf-8" else [(f"read as {encoding}", None)])


@pytest.mark.parametrize(
    ("text", "codec", "is_read"),
    [
        ("旅館的房間很乾淨，我們還會再來這個地方，服務人員對客人很好。" * 9, "gbk", True),
        ("这家酒店的服务非常好。", "gb18030", True),
        ("сегодня хорошая погода, завтра будет дождь и ветер\n" * 9, "cp1251", False),
        ("오늘은날씨가좋습니다내일은비가올것같습니다그래서우산을가져가야합니다" * 9, "euc-kr", False),
        ("Über größere Fläche schön grün müssen wir später früher würfeln\n" * 9, "latin-1", False),
        ("今日は天気がいいです。明日は雨が降るでしょう。" * 9, "shift-jis", False),
        ("今日は天気がいいです。明日は雨が降るでしょう。" * 9, "euc-jp", False),
    ],
)
def test_only_chinese_is_taken_for_chinese(tmp_path: Path, text: str, codec: str, is_read: bool) -> None:
    path = write(tmp_path, "a.txt", text.encode(codec))
    if is_read:
        assert read_rows(path).rows[0].values == text
    else:
        with pytest.raises(DataError, match="is not UTF-8, and the file is not GB18030"):
            read_rows(path)


def test_utf_16_without_a_mark_in_front_is_called_binary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NUL byte"):
        read_rows(write(tmp_path, "a.csv", "text,label\nhello,x\n".encode("utf-16-le")))


BAD = {
    "missing.jsonl": (None, "does not exist"),
    "empty.jsonl": (b"", "is empty"),
    "blank.csv": (b" \n\n ", "is empty"),
    "mark.txt": (b"\xef\xbb\xbf", "is empty|holds no"),
    "binary.txt": (b"ELF\x00\x01\x02\n\xff\xfe", "line 1: a NUL byte"),
    "latin.csv": ("text,label\ncafé au lait,x\nMüller,y\n".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8"),
    "cut.jsonl": ("{}\n".encode("utf-16")[:-1], "byte order mark of UTF-16"),
    "packed.jsonl": (b"\x1f\x8b\x08\x00rest", "the gzip data is damaged or cut off"),
    "broken.jsonl": (b'{"a": 1}\n{"a": }\n', "line 2, column 7: not valid JSON"),
    "number.jsonl": (b'{"a": 1}\n17\n', "line 2: a JSON number"),
    "broken.json": (b'[{"a": 1},\n {"a" 2}]', "line 2, column 7: not valid JSON"),
    "single.json": (b'{"a": "x"}', "no array of rows"),
    "text.json": (b'"x"', "a single JSON string"),
    "two.json": (b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "several arrays of rows .a, b."),
    "deep.jsonl": (b'{"a": 1}\n' + b"[" * 10_000 + b"]" * 10_000, "line 2: JSON nested too deeply"),
    "deep.json": (b'[{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}]", "nested too deeply"),
    "huge.jsonl": (b'{"a": ' + b"1" * 5000 + b"}", "line 1: not usable JSON"),
    "mixed.jsonl": (b'{"a": 1}\n{"a": 2}\n"text"\n', "row 3: a text, where the rows before are not"),
    "ragged.csv": (b"text,label\na,b\nc\n", "line 3: 1 fields, where the header has 2"),
    "wide.tsv": (b"text\tlabel\na\tb\nc\td\te\n", "line 3: 3 fields, where the header has 2"),
    "open.csv": (b'text,label\n"a,b\nc,d\n', "line 2: not valid CSV"),
    "twice.csv": (b"text,text\na,b\n", "the column 'text' occurs twice"),
    "head.csv": (b"text,label\n", "a header line and no rows"),
    "bad.parquet": (b"PAR1 but not really", "not a readable Parquet file"),
    "squad.json": (b'{"data": [{"paragraphs": [{"context": "x"}]}]}', "article 1: not as SQuAD nests"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_an_error_that_names_the_place(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(path)
    assert str(path) in str(caught.value)


def test_a_folder_and_a_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        read_rows(Path("/dev/null"))


def test_nan_is_read_as_null_and_noted(tmp_path: Path) -> None:
    file = read_rows(write(tmp_path, "a.jsonl", '{"a": 1}\n{"a": NaN}\n'))
    assert [row.values for row in file] == [{"a": 1}, {"a": None}]
    assert repairs(file) == [("NaN or Infinity read as null", 2)]


def test_a_field_of_a_megabyte_is_no_obstacle(tmp_path: Path) -> None:
    file = read_rows(write(tmp_path, "a.csv", f"text,label\n{'x' * 1_000_000},a\n"))
    assert isinstance(file.rows[0].values, dict)
    assert len(file.rows[0].values["text"]) == 1_000_000
