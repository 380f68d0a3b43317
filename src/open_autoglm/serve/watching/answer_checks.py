# SPDX-License-Identifier: Apache-2.0
"""Checks of the answers of each model: how long, how sure, of the right form, and whether that changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from open_autoglm.serve.watching.answer_form import FAULTS
from open_autoglm.serve.watching.drift import REFERENCE, WINDOW, Drift
from open_autoglm.serve.watching.request_record import ChoiceRecord, RequestRecord

LENGTH: Final = "tokens"
LOGPROB: Final = "logprob"
_FLOORS: Final = {LENGTH: 0.5, LOGPROB: 0.01}

_log = logging.getLogger("open_autoglm.serve.answers")


class ModelChecks:
    """What the answers of one model were like.

    digest: of the model, whose answers are not compared with those of another under its name.
    measures: of each, `tokens` (of an answer) and `logprob` (the mean over its tokens, in nats, of answers whose
    tokens were scored), how it drifts. faults: answers that broke their form, by how. num_checked: answers that had a
    form to keep to. illegal: the share of faults among the newest of these.
    """

    def __init__(self, digest: str | None, reference: int, window: int) -> None:
        self.digest = digest
        self._newest = 2.0 / (window + 1)
        self.measures = {
            name: Drift(reference=reference, window=window, floor=floor) for name, floor in _FLOORS.items()
        }
        self.num_checked = 0
        self.faults = dict.fromkeys(FAULTS, 0)
        self.illegal: float | None = None

    def take(self, record: RequestRecord, choice: ChoiceRecord) -> list[str]:
        """Check an answer. Returns the measures that it shows to have drifted."""
        drifted: list[str] = []
        if choice.usage is not None and self.measures[LENGTH].add(float(choice.usage.completion_tokens)):
            drifted.append(LENGTH)
        if choice.num_scored and self.measures[LOGPROB].add(choice.sum_logprob / choice.num_scored):
            drifted.append(LOGPROB)
        if record.form is not None:
            self._check_form(record, choice)
        return drifted

    def _check_form(self, record: RequestRecord, choice: ChoiceRecord) -> None:
        form = record.form
        if form is None or (form.has_tools and not choice.arguments):
            return
        if choice.is_cut:  # of so long an answer we know only whether it came to its own end
            fault = "cut" if choice.finish_reason == "length" else None
        else:
            arguments = ["".join(parts) for _, parts in sorted(choice.arguments.items())]
            fault = form.fault("".join(choice.text), arguments, choice.finish_reason)
        self.num_checked += 1
        if fault is not None:
            self.faults[fault] += 1
        # A plain mean while there are few, then one that forgets.
        weight = max(self._newest, 1.0 / self.num_checked)
        before = self.illegal or 0.0
        self.illegal = before + weight * (float(fault is not None) - before)


class AnswerChecks:
    """The checks of all models, by name. reference, window: answers; see `Drift`."""

    def __init__(self, *, reference: int = REFERENCE, window: int = WINDOW) -> None:
        self._reference, self._window = reference, window
        self._models: dict[str, ModelChecks] = {}

    @property
    def models(self) -> Mapping[str, ModelChecks]:
        """What is known, by model."""
        return self._models

    def take(self, record: RequestRecord) -> None:
        """Check the answers of a request that came to their end. A drift is logged once, until it has gone again."""
        if record.model is None or record.order is None:
            return
        checks = self._models.get(record.model)
        if checks is None or checks.digest != record.digest:
            checks = self._models[record.model] = ModelChecks(record.digest, self._reference, self._window)
        for _, choice in record.answers:
            for name in checks.take(record, choice):
                drift = checks.measures[name]
                _log.warning(
                    "the answers of %s have drifted: their %s are %.4g on average and were %.4g at first "
                    "(population stability index %.2f)",
                    record.model,
                    "lengths in tokens" if name == LENGTH else "mean log-probabilities",
                    drift.mean or 0.0,
                    drift.reference_mean or 0.0,
                    drift.stability_index or 0.0,
                )
