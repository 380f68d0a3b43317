# SPDX-License-Identifier: Apache-2.0
"""Step 1: files -> examples, cleaned, split and tokenised, with the task that they ask for and a report.

The names below are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from open_autoglm.data.example import Example

if TYPE_CHECKING:
    from open_autoglm.data.ambiguity import AmbiguousDataError, Reading
    from open_autoglm.data.augmentation import swap_slot_values, values_by_key
    from open_autoglm.data.columns import parse_columns
    from open_autoglm.data.detection import check_reading
    from open_autoglm.data.encoding import TokenizedExamples, encode_examples
    from open_autoglm.data.findings import Finding, FindingKind
    from open_autoglm.data.html_report import describe_report, write_reports
    from open_autoglm.data.preparation import PreparedData, load_examples, prepare
    from open_autoglm.data.readers import RowStream, open_rows
    from open_autoglm.data.report import DataReport
    from open_autoglm.data.tokenizer import choose_vocab_size, spaced_twins, train_tokenizer

__all__ = [
    "AmbiguousDataError",
    "DataReport",
    "Example",
    "Finding",
    "FindingKind",
    "PreparedData",
    "Reading",
    "RowStream",
    "TokenizedExamples",
    "check_reading",
    "choose_vocab_size",
    "describe_report",
    "encode_examples",
    "load_examples",
    "open_rows",
    "parse_columns",
    "prepare",
    "spaced_twins",
    "swap_slot_values",
    "train_tokenizer",
    "values_by_key",
    "write_reports",
]

_HOMES = {
    "AmbiguousDataError": "ambiguity",
    "DataReport": "report",
    "Finding": "findings",
    "FindingKind": "findings",
    "PreparedData": "preparation",
    "Reading": "ambiguity",
    "RowStream": "readers",
    "TokenizedExamples": "encoding",
    "check_reading": "detection",
    "choose_vocab_size": "tokenizer",
    "describe_report": "html_report",
    "encode_examples": "encoding",
    "load_examples": "preparation",
    "open_rows": "readers",
    "parse_columns": "columns",
    "prepare": "preparation",
    "spaced_twins": "tokenizer",
    "swap_slot_values": "augmentation",
    "train_tokenizer": "tokenizer",
    "values_by_key": "augmentation",
    "write_reports": "html_report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
