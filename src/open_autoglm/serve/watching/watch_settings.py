# SPDX-License-Identifier: Apache-2.0
"""What an operator decides about logs, metrics and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.option_fields import option

LOG_FORMATS: Final = ("auto", "json", "text")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class WatchSettings:
    """What is written and told of requests. Raises ConfigurationError for a value that cannot be."""

    log_format: str = option(
        "auto", "How lines of the log look: `json`, `text`, or `auto`: text on a terminal, JSON elsewhere."
    )
    log_level: str = option("info", "The least that is logged: `debug`, `info`, `warning` or `error`.")
    log_content: bool = option(False, "Write prompts and answers into the log; without it they never are.")
    metrics_public: bool = option(False, "Let anybody read /metrics, without a key.")
    score_share: float = option(
        0.0, "Of which share of the answers the tokens' probabilities are computed, to see whether they drift."
    )
    otlp_endpoint: str | None = option(
        None, "Send traces to an OpenTelemetry collector, over OTLP/HTTP, such as http://127.0.0.1:4318."
    )
    trace_share: float = option(1.0, "Which share of the requests is traced, where the caller did not decide it.")

    def __post_init__(self) -> None:
        for name, value, known in (
            ("log-format", self.log_format, LOG_FORMATS),
            ("log-level", self.log_level, LOG_LEVELS),
        ):
            if value not in known:
                raise ConfigurationError(f"--{name} '{value}' is not known; choose one of: {', '.join(known)}")
        for name, share in (("score-share", self.score_share), ("trace-share", self.trace_share)):
            if not 0.0 <= share <= 1.0:
                raise ConfigurationError(f"--{name} {share} is not a share; give a number from 0 to 1")
        if self.otlp_endpoint is not None and not _is_http_url(self.otlp_endpoint):
            raise ConfigurationError(
                f"--otlp-endpoint '{self.otlp_endpoint}' is not an address such as http://127.0.0.1:4318"
            )


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable() and " " not in text
