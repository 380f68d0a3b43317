# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: what `open-autoglm eval` does, as a stage that can stop a run."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from open_autoglm.command_stages.folders import BUNDLE, given_bundle
from open_autoglm.command_stages.output_log import output_to_log
from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.spelling import did_you_mean


class EvaluateConfig(BaseModel):
    """bundle: a folder or the NAME of runs/NAME; the payload's `bundle` if not given. data: a file of the shape that
    the bundle was built from. weights: float32, int8 or int4. metric: decides in place of the task's own.

    least, most: what metrics must reach, and must not pass, or the run ends: `{exact_match: 0.9}`.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = None
    data: Path
    columns: dict[str, str] | None = None
    weights: str | None = None
    metric: str | None = None
    least: dict[str, float] = {}
    most: dict[str, float] = {}
    backend: str = "auto"
    threads: int | None = Field(default=None, ge=1)


class Evaluate:
    """Each answer stands beside its reference in a file of the run's folder."""

    config_model = EvaluateConfig
    own_process = True

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with `evaluation`: metrics, their intervals, the number of examples, and the file of answers."""
        from open_autoglm.evaluate import evaluate_bundle
        from open_autoglm.metrics import choose_metric

        config = self._config
        bundle = given_bundle(config.bundle, packet)
        answers = context.stage_folder / "answers.jsonl"
        with output_to_log(context.log):
            evaluation = evaluate_bundle(
                bundle,
                config.data,
                columns=config.columns,
                weights=config.weights,
                backend=config.backend,
                threads=config.threads,
                metric=None if config.metric is None else choose_metric(config.metric),
                answers_path=answers,
            )
        context.log.info("%s: %s over %d examples", bundle, evaluation.metrics, evaluation.n)
        self._compare(evaluation.metrics)
        told = {**evaluation.to_dict(), "answers": str(answers) if answers.is_file() else None}
        return packet.with_payload({**packet.payload, BUNDLE: str(bundle), "evaluation": told})

    def _compare(self, metrics: dict[str, float]) -> None:
        for name in (*self._config.least, *self._config.most):
            if name not in metrics:
                raise PipelineError(
                    f"there is no metric '{name}'{did_you_mean(name, metrics)}; there are {list(metrics)}"
                )
        for name, bound in self._config.least.items():
            if not metrics[name] >= bound:
                raise PipelineError(f"{name} is {metrics[name]:.4f}, below the {bound:g} of config.least")
        for name, bound in self._config.most.items():
            if not metrics[name] <= bound:
                raise PipelineError(f"{name} is {metrics[name]:.4f}, above the {bound:g} of config.most")
