# SPDX-License-Identifier: Apache-2.0
"""`vote`: one answer out of several: of several models, several stages, or several samples of one model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.records import read_records
from open_autoglm.pipeline.stages.record_fields import ID, name_of, records_of, with_records
from open_autoglm.spelling import did_you_mean

_EQUAL: Final = 1e-9


class VoteConfig(BaseModel):
    """One of three says who votes. fields: fields of a record, each with an answer. samples: a field with a list of
    answers. stages: the stages that this one needs, whose records are put together by `id`; `answer` is the field.

    rule: `majority` needs more than half of all weight, `plurality` the most, `agreement` all of it. weights: of fields
    or stages, 1 if not given. weigh_by: of stages, a field of the record whose number counts as well.
    compare: answers are the same as JSON, as text without regard to case and spaces, or sign by sign.
    """

    model_config = ConfigDict(extra="forbid")

    fields: list[str] = Field(default=[], max_length=100)
    samples: str | None = None
    stages: list[str] = Field(default=[], max_length=100)
    answer: str = "answer"
    output: str = "answer"
    rule: Literal["majority", "plurality", "agreement"] = "majority"
    weights: dict[str, float] = {}
    weigh_by: str | None = None
    compare: Literal["json", "text", "exact"] = "json"
    on_tie: Literal["none", "first", "fail"] = "none"

    @model_validator(mode="after")
    def _one_kind_of_voters(self) -> VoteConfig:
        if sum((bool(self.fields), self.samples is not None, bool(self.stages))) != 1:
            raise ValueError("say who votes by one of fields, samples and stages")
        voters = self.fields or self.stages
        if voters and len(set(voters)) < max(2, len(voters)):
            raise ValueError("a vote needs two different voters at least")
        for name, weight in self.weights.items():
            if name not in voters:
                raise ValueError(f"'{name}' has a weight and does not vote{did_you_mean(name, voters)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of '{name}' must be 0 or more")
        if self.weigh_by is not None and not self.stages:
            raise ValueError("weigh_by is for stages")
        return self


@dataclass
class _Party:
    """Those who gave the same answer."""

    answer: Any
    weight: float = 0.0
    voters: list[str] = field(default_factory=list)


class Vote:
    """Each record says how the vote went: `agreement`, the winner's share, and `vote` with all that was said.

    An answer that is null, or a record that is marked with an `error`, abstains.
    """

    config_model = VoteConfig

    def __init__(self, config: VoteConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with the winner in each record, null where nobody won."""
        if self._config.stages:
            joined = packet.with_payload({})
            return with_records(joined, context, self._joined(packet.payload))
        return with_records(packet, context, (self._decided(one, self._ballots(one)) for one in records_of(packet)))

    def _ballots(self, record: Mapping[str, Any]) -> list[tuple[str, Any, float]]:
        """Who says what, with which weight."""
        config = self._config
        if config.samples is not None:
            given = record.get(config.samples)
            if not isinstance(given, list):
                raise PipelineError(
                    f"{name_of(record)} has no list in '{config.samples}'{did_you_mean(config.samples, record)}; "
                    "glm_router gives one with samples: 5"
                )
            return [(str(number), answer, 1.0) for number, answer in enumerate(given, 1)]
        for name in config.fields:
            if name not in record:
                raise PipelineError(f"{name_of(record)} has no field '{name}'{did_you_mean(name, record)}")
        return [(name, record[name], config.weights.get(name, 1.0)) for name in config.fields]

    def _joined(self, payload: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The records of several stages, put together by their ids."""
        config = self._config
        tables: dict[str, dict[Any, dict[str, Any]]] = {}
        for stage in config.stages:
            part = payload.get(stage)
            if not isinstance(part, dict):
                raise PipelineError(f"the payload has nothing of '{stage}'; name it under the stage's 'needs'")
            table = tables[stage] = {}
            for record in read_records(part):
                if not isinstance(record.get(ID), str | int):
                    raise PipelineError(f"a record of '{stage}' has no id, by which answers are put together")
                if table.setdefault(record[ID], record) is not record:
                    raise PipelineError(f"{name_of(record)} is twice among those of '{stage}'")
        first = config.stages[0]
        for stage, table in tables.items():
            if missing := next((one for one in (table.keys() ^ tables[first].keys())), None):
                lacking = first if missing in table else stage
                raise PipelineError(f"record {missing!r} is not among those of '{lacking}'")
        for identity, record in tables[first].items():
            ballots: list[tuple[str, Any, float]] = []
            for stage in config.stages:
                vote = tables[stage][identity]
                if config.answer not in vote:
                    raise PipelineError(f"{name_of(vote)} of '{stage}' has no field '{config.answer}'")
                answer = None if vote.get("error") is not None else vote[config.answer]
                ballots.append((stage, answer, config.weights.get(stage, 1.0) * self._own_weight(vote, stage)))
            yield self._decided(record, ballots)

    def _own_weight(self, record: Mapping[str, Any], stage: str) -> float:
        name = self._config.weigh_by
        if name is None or record.get(self._config.answer) is None:
            return 1.0
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise PipelineError(f"{name_of(record)} of '{stage}' has no number in '{name}'")
        return float(value)

    def _decided(self, record: Mapping[str, Any], ballots: list[tuple[str, Any, float]]) -> dict[str, Any]:
        config = self._config
        parties: dict[str, _Party] = {}
        abstained: list[str] = []
        for voter, answer, weight in ballots:
            if answer is None:
                abstained.append(voter)
                continue
            party = parties.setdefault(self._same(answer), _Party(answer))
            party.weight += weight
            party.voters.append(voter)
        order = sorted(parties.values(), key=lambda party: -party.weight)  # equal ones in the order of the voters
        total = math.fsum(party.weight for party in order)
        is_tie = len(order) > 1 and order[0].weight - order[1].weight <= _EQUAL * max(total, 1.0)
        share = order[0].weight / total if order and total > 0 else 0.0
        if is_tie and config.on_tie == "fail":
            raise PipelineError(f"{name_of(record)}: the vote is a tie: {_told(order[0])} and {_told(order[1])}")
        won = bool(order) and total > 0
        if is_tie:
            won = won and config.on_tie == "first" and config.rule != "agreement"
        elif config.rule == "majority":
            won = won and share > 0.5
        elif config.rule == "agreement":
            won = won and len(order) == 1 and not abstained
        counts = [{"answer": party.answer, "weight": party.weight, "voters": party.voters} for party in order]
        return {
            **record,
            config.output: order[0].answer if won else None,
            "agreement": share,
            "vote": {"counts": counts, "tie": is_tie, "won": won, "abstained": abstained},
        }

    def _same(self, answer: Any) -> str:
        """Equal for answers that count as the same."""
        value = answer
        if self._config.compare == "json" and isinstance(answer, str):
            try:
                value = json.loads(answer)
            except ValueError:
                value = answer.strip()
        elif self._config.compare == "text":
            text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, sort_keys=True)
            value = " ".join(text.casefold().split())
        return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _told(party: _Party) -> str:
    return f"{json.dumps(party.answer, ensure_ascii=False)[:80]} by {', '.join(party.voters)}"
