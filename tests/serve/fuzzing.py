# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis makes of our own document, valid and not, and what every answer must be."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis
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
_FEW = 20
_COSTLY = {"/v1/chat/completions": 2, "/tokenize": 3}
"""Operations whose requests take long to make, and by how much fewer of them are made."""


@dataclass
class Tally:
    """Answers by operation and status."""

    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def cases(self) -> int:
        return self.statuses.total()


class Fuzzer:
    """Asks a server what its document allows and what it does not.

    described: the document, or a part of it.
    Raises what schemathesis finds wrong with an answer: a 5xx, a status or body that the document does not have,
    a request that does not fit the document and is answered.
    """

    def __init__(self, url: str, tally: Tally, described: dict[str, Any] | None = None) -> None:
        self._url, self._tally = url, tally
        document = schemathesis.openapi.from_dict(openapi_document() if described is None else described)
        self._operations = [found.ok() for found in document.get_all_operations()]
        self._session = requests.Session()

    def __enter__(self) -> "Fuzzer":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @property
    def kinds(self) -> list[tuple[Any, GenerationMode]]:
        """What may be asked: each operation with what fits the document, and with what does not."""
        return [
            (operation, mode)
            for operation in self._operations
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            if mode is GenerationMode.POSITIVE or operation.method == "post"
        ]

    def ask(self, kind: tuple[Any, GenerationMode], examples: int, *, seed: int | None = None) -> None:
        """Ask one of `kinds` about so many times. seed: of what is asked; the same each time without one."""
        operation, mode = kind
        examples = max(1, examples // _COSTLY.get(operation.path, 1))

        @settings(
            max_examples=examples if operation.method == "post" else min(examples, _FEW), deadline=None,
            derandomize=seed is None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: Case) -> None:
            self._ask(case, operation.label, mode)

        (ask if seed is None else hypothesis.seed(seed)(ask))()

    def _ask(self, case: Case, label: str, mode: GenerationMode) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body.pop("model", None)  # a name that is not served is all that would be looked at
        response = case.call(base_url=self._url, session=self._session, timeout=60)
        self._tally.statuses[f"{label} {mode.value} {response.status_code}"] += 1
        # A body can break the document and be too large as well; either answer is right.
        too_large = response.status_code == 413
        checks = [check for check in CHECKS if not (too_large and check is negative_data_rejection)]
        case.validate_response(response, checks=checks)
