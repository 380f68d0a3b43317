# SPDX-License-Identifier: Apache-2.0
"""Secrets and references: where values come from, and that they are seen nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline.references import Reference, fill, outside_sources, references_in
from open_autoglm.pipeline.secrets import Redactor, SecretStore


def test_a_secret_is_a_variable_or_a_private_file(tmp_path: Path) -> None:
    (tmp_path / "FILED").write_text("from a file\n")
    (tmp_path / "FILED").chmod(0o600)
    (tmp_path / "OPEN").write_text("x")
    (tmp_path / "OPEN").chmod(0o644)
    store = SecretStore({"OPEN_AUTOGLM_SECRET_NAMED": "a value", "OPEN_AUTOGLM_SECRETS_FOLDER": str(tmp_path)})
    assert (store.get("NAMED"), store.get("FILED")) == ("a value", "from a file")
    with pytest.raises(ConfigurationError, match=r"OPEN can be read or written by everybody; run chmod 600"):
        store.get("OPEN")
    with pytest.raises(ConfigurationError, match=r"no secret 'NONE'; set OPEN_AUTOGLM_SECRET_NONE, or put it"):
        store.get("NONE")
    for name in ("../x", "a b", "", "x/y", "-"):
        with pytest.raises(ConfigurationError, match="cannot name a secret"):
            store.get(name)


def test_what_is_hidden_is_hidden_everywhere() -> None:
    redactor = Redactor(["s3cret", "s3", "line one\nline two"])
    assert redactor.text("a s3cret in a s3cretary") == "a *** in a ***ary"
    assert redactor.text("s3") == "***"  # short ones where they stand alone only
    assert redactor.text("s30") == "s30"
    assert redactor.text("before line two after") == "before *** after"
    assert redactor.json({"s3cret": ["x s3cret", 1, None, {"k": "s3"}]}) == {"***": ["x ***", 1, None, {"k": "***"}]}
    redactor.hide_password("postgresql://me:p%40ssword@host/db")
    assert redactor.text("cannot reach me:p%40ssword@host with p@ssword") == "cannot reach me:***@host with ***"


@given(st.text(min_size=4).filter(str.strip), st.text(), st.text())
def test_no_text_shows_a_hidden_value(secret: str, before: str, after: str) -> None:
    if not any(part in "***" for part in secret.splitlines()):
        assert secret not in Redactor([secret]).text(before + secret + after)


def test_references_are_found_and_filled() -> None:
    config = {"a": "${env:A}", "b": ["x ${env:B:-none} ${secrets:S}", 5], "c": "$${env:A} ${matrix:m}"}
    assert list(references_in(config)) == [
        Reference(("a",), "env", "A"),
        Reference(("b", 0), "env", "B:-none"),
        Reference(("b", 0), "secrets", "S"),
        Reference(("c",), "matrix", "m"),
    ]
    store = SecretStore({"OPEN_AUTOGLM_SECRET_S": "hush"})
    sources = outside_sources({"A": "1"}, store)
    first = fill(config, {"matrix": lambda name: 7})
    assert first["c"] == "$${env:A} 7"
    assert fill(first, sources, last=True) == {"a": "1", "b": ["x none hush", 5], "c": "${env:A} 7"}
    assert fill("${matrix:m}", {"matrix": lambda name: [1]}) == [1]
    # What a variable holds is a value, never a reference again.
    assert fill("${env:A}", outside_sources({"A": "${secrets:S}"}, store), last=True) == "${secrets:S}"
    with pytest.raises(ConfigurationError, match=r"variable GONE is not set; set it, or write \$\{env:GONE:-default\}"):
        fill("${env:GONE}", sources)
