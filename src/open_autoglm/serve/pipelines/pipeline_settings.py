# SPDX-License-Identifier: Apache-2.0
"""What an operator decides about pipelines over HTTP; off unless there is a folder of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.option_fields import option

HOOKS_PREFIX: Final = "/hooks/"
"""Where webhooks are. No API key is asked for below it: senders sign what they send."""


@dataclass(frozen=True)
class PipelineSettings:
    """Which pipelines there are and where their runs are. Raises ConfigurationError for a part without the rest."""

    pipelines: str | None = option(
        None, "A folder of pipelines' YAML files that may be started and watched over HTTP; `worker` runs them."
    )
    database: str | None = option(
        None,
        "Where runs are remembered, the same for workers: sqlite:///FILE or postgresql://HOST/NAME; by default a file "
        "in --runs-folder.",
        secret=True,
    )
    runs_folder: str = option("runs/pipelines", "Where runs have their folders, the same for workers (--folder).")
    webhook_body: int = option(1024 * 1024, "Bytes of a webhook's body.")

    def __post_init__(self) -> None:
        if self.pipelines is None and self.database is not None:
            raise ConfigurationError("--database is for the runs of pipelines; give --pipelines FOLDER too")
        if self.webhook_body < 1:
            raise ConfigurationError(f"--webhook-body {self.webhook_body} would refuse everything; give 1 or more")
