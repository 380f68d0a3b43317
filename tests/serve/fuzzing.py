# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis makes of our own document, valid and not, and what every answer must be."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi.checks import UnsupportedMethodResponse  # noqa: F401 - loads the checks of OpenAPI
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from open_autoglm.serve.routes.openapi_document import openapi_document

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection, unsupported_method,
]  # fmt: skip


@dataclass
class Tally:
    """Answers by operation and status."""

    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def cases(self) -> int:
        return self.statuses.total()


def fuzz(
    url: str, *, examples: int, tally: Tally, derandomize: bool = True, described: dict[str, Any] | None = None
) -> None:
    """Ask each operation so many times with what fits our document and as often with what does not.

    described: the document, or a part of it.
    Raises what schemathesis finds wrong with an answer: a 5xx, a status or body that the document does not have,
    a request that does not fit the document and is answered.
    """
    document = schemathesis.openapi.from_dict(openapi_document() if described is None else described)
    with requests.Session() as session:
        for found in document.get_all_operations():
            operation = found.ok()
            modes = [GenerationMode.POSITIVE] + [GenerationMode.NEGATIVE] * (operation.method == "post")
            for mode in modes:

                @settings(
                    max_examples=examples if operation.method == "post" else min(examples, 20),
                    deadline=None,
                    derandomize=derandomize,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(operation.as_strategy(generation_mode=mode))
                def ask(case: Case) -> None:
                    response = case.call(base_url=url, session=session, timeout=60)
                    tally.statuses[f"{operation.label} {response.status_code}"] += 1  # noqa: B023
                    # A body can break the document and be too large as well; either answer is right.
                    too_large = response.status_code == 413
                    checks = [check for check in CHECKS if not (too_large and check is negative_data_rejection)]
                    case.validate_response(response, checks=checks)

                ask()
