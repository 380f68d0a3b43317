# SPDX-License-Identifier: Apache-2.0
"""`sql_source` and `sql_sink` on real SQLite files, read back with Python's own driver."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.records import read_records

Invoke = Callable[..., dict[str, Any]]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table tickets (id integer primary key, body text, price numeric, data blob)")
        connection.executemany(
            "insert into tickets values (?, ?, ?, ?)", [(n, f"text {n}", n / 4, b"\xff") for n in range(1, 11)]
        )
    connection.close()
    return path


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_the_cursor_goes_on_where_the_last_run_came_to(invoke: Invoke, database: Path) -> None:
    config = {
        "url": f"sqlite:///{database}",
        "query": "select id, body from tickets where id > :cursor",
        "cursor": "id",
    }
    first = invoke("sql_source", config)["records"]
    assert first == [{"id": n, "body": f"text {n}"} for n in range(1, 11)]
    assert invoke("sql_source", config)["records"] == []
    with sqlite3.connect(database) as connection:
        connection.execute("insert into tickets values (12, 'new', null, null)")
    connection.close()
    assert invoke("sql_source", config)["records"] == [{"id": 12, "body": "new"}]
    assert invoke("sql_source", config)["records"] == []


def test_a_limit_takes_rows_of_one_cursor_together(invoke: Invoke, database: Path) -> None:
    query = "select id, body, (id + 1) / 3 as day from tickets where (id + 1) / 3 > :cursor order by day"
    config = {"url": f"sqlite:///{database}", "query": query, "cursor": "day", "limit": 4, "start": -1}
    taken = []
    while part := invoke("sql_source", config)["records"]:
        assert len({row["day"] for row in part}) <= 4
        taken += [row["id"] for row in part]
    assert taken == list(range(1, 11))
    config["query"] = query + " desc"
    config["start"] = -2
    with pytest.raises(PipelineError, match="must end with `order by day`"):
        invoke(
            "sql_source", config | {"cursor": "day", "query": query.replace("> :cursor", "> :cursor - 99") + " desc"}
        )


def test_many_rows_go_to_a_file(invoke: Invoke, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.executemany("insert into tickets (id, body) values (?, 'x')", [(n,) for n in range(100, 3000)])
    connection.close()
    payload = invoke("sql_source", {"url": f"sqlite:///{database}", "query": "select id, body from tickets"})
    assert payload["records"]["count"] == 2910
    assert len(list(read_records(payload))) == 2910


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"query": "select id from tickets where id > :cursor"}, "say which column"),
        ({"query": "select id from tickets", "cursor": "id"}, "take all rows again"),
        ({"query": "select id from tickets where id > :least"}, "'parameters' has no value"),
        ({"query": "select id from tickets", "limit": 3}, "a limit needs a cursor"),
        ({"query": ""}, "at least 1 character"),
        ({}, "Field required"),
    ],
)
def test_settings_with_a_fault_are_refused(
    invoke: Invoke, database: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        invoke("sql_source", {"url": f"sqlite:///{database}", **config})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select body from tickets", "no column 'id'"),
        ("select id from ticket", "no such table: ticket"),
        ("selec id", "syntax error"),
        ("select 1 as id union all select 1", "the id 1, as a row before it has"),
    ],
)
def test_queries_with_a_fault_say_so(invoke: Invoke, database: Path, query: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        invoke("sql_source", {"url": f"sqlite:///{database}", "query": query})


def test_no_database_is_one_line_without_the_password(invoke: Invoke) -> None:
    with pytest.raises(ConfigurationError) as caught:
        invoke("sql_source", {"url": "what:pass-word@x", "query": "select 1 as id"})
    assert "pass-word" not in str(caught.value)


def test_every_record_is_there_once_however_often_it_comes(invoke: Invoke, database: Path) -> None:
    config = {"url": f"sqlite:///{database}", "table": "answers"}
    records = [{"id": n, "answer": f"a{n}", "slots": {"n": [n]}, "sure": 0.5} for n in range(1200)]
    assert invoke("sql_sink", config, {"records": records})["written"] == 1200
    invoke("sql_sink", config, {"records": records}, key="run/stage/1")
    changed = [{**records[0], "answer": "other"}, {"id": 5000, "answer": "new"}]
    invoke("sql_sink", config, {"records": changed})
    assert rows(database, "select count(*), count(distinct id) from answers") == [(1201, 1201)]
    assert rows(database, "select answer, slots, sure from answers where id in (0, 7, 5000) order by id") == [
        ("other", '{"n": [0]}', 0.5), ("a7", '{"n": [7]}', 0.5), ("new", None, None)
    ]  # fmt: skip
    invoke("sql_sink", {**config, "on_conflict": "ignore"}, {"records": [{"id": 7, "answer": "late"}]})
    assert rows(database, "select answer from answers where id = 7") == [("a7",)]


def test_a_table_that_is_there_keeps_its_own_columns(invoke: Invoke, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("create table out (id text primary key, answer text, seen text default 'no')")
    connection.close()
    config = {"url": f"sqlite:///{database}", "table": "out"}
    invoke("sql_sink", config, {"records": [{"id": "x", "answer": "1"}]})
    assert rows(database, "select * from out") == [("x", "1", "no")]
    with pytest.raises(PipelineError, match="record 'y': the table out has no column 'answr'; did you mean 'answer'"):
        invoke("sql_sink", config, {"records": [{"id": "z", "answer": "1"}, {"id": "y", "answr": "2"}]})
    assert rows(database, "select count(*) from out") == [(1,)], "all of a packet or nothing"
    invoke("sql_sink", config | {"columns": ["answer"]}, {"records": [{"id": "y", "answer": "2", "more": 3}]})
    assert rows(database, "select id from out order by id") == [("x",), ("y",)]


def test_a_table_without_a_unique_key_is_refused(invoke: Invoke, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("create table out (id text, answer text)")
    connection.close()
    with pytest.raises(PipelineError, match="neither the primary key of out nor unique"):
        invoke("sql_sink", {"url": f"sqlite:///{database}", "table": "out"}, {"records": [{"id": "x"}]})
    with pytest.raises(PipelineError, match="has no 'id', by which"):
        invoke("sql_sink", {"url": f"sqlite:///{database}", "table": "new"}, {"records": [{"a": "x"}]})


def test_a_database_that_is_locked_may_be_tried_again(
    invoke: Invoke, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy import create_engine

    from open_autoglm.pipeline.stages import sql_sink

    monkeypatch.setattr(sql_sink, "open_database", lambda url: create_engine(url, connect_args={"timeout": 0.1}))
    invoke("sql_sink", {"url": f"sqlite:///{database}", "table": "out"}, {"records": [{"id": 1}]})
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("begin exclusive")
    with pytest.raises(ConnectionError, match="database is locked"):
        invoke("sql_sink", {"url": f"sqlite:///{database}", "table": "out"}, {"records": [{"id": 1}]})
    connection.close()
