# SPDX-License-Identifier: Apache-2.0
"""One decoder layer rounded: by RTN, GPTQ or AWQ, dense or a mixture of experts, in bounded memory.

The layer is changed on the way: each rounded matrix takes the place of the exact one, so that what is rounded later,
and the next layer, see the inputs that they will see in use. Beside it runs a copy of the exact layer, over the exact
model's hidden states, so that GPTQ can aim at the exact outputs. Experts see only their own tokens; which these are
differs between the two, so that they aim at the outputs of their own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

from open_autoglm.compress.activations import HiddenStates, InputMoments, LayerRunner
from open_autoglm.compress.awq import round_by_awq
from open_autoglm.compress.folding import AwqFolds
from open_autoglm.compress.gptq import GptqSettings, move_to_exact_outputs, round_by_gptq
from open_autoglm.compress.grids import RoundedMatrix, Rounding, fit_grid, round_to_grid
from open_autoglm.compress.layer_plan import InputGroup, LayerPlan, linear_of, plan_layer
from open_autoglm.compress.plugin_rounding import PluginRounding
from open_autoglm.models.glm import DecoderLayer

RoundingMethod = Literal["rtn", "gptq", "awq"]

_MOMENT_BYTES: Final = 2 << 30
"""Memory for the moments that are gathered in one pass over the calibration data."""

_FEWEST_TOKENS: Final = 64


@dataclass(frozen=True)
class MatrixReport:
    """What rounding did to one matrix.

    method: that was used, `rtn` where there were too few tokens for another. tokens: of the calibration that it saw.
    weight_error: the squared error as a share of the squared weights. output_error: the same of its outputs on the
    calibration data, beside those of the matrix that was to be rounded; None where there was none. power: AWQ's, of
    the activations. note: why the method is not the one asked for.
    """

    name: str
    method: str
    tokens: int
    weight_error: float
    output_error: float | None = None
    power: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what there is nothing to say of."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


@dataclass
class RoundedLayer:
    """matrices: by name within the layer. reports: in the order of computing."""

    matrices: dict[str, RoundedMatrix] = field(default_factory=dict)
    reports: list[MatrixReport] = field(default_factory=list)


class LayerRounder:
    """Rounds the matrices of one layer.

    kept: names within the layer of matrices that stay in floating point. dense_type: in which norms and biases will be
    stored, so that AWQ's scales fit what is read back. compensate: whether AWQ rounds as GPTQ does. plugin: rounds in
    place of ours. on_progress: called as matrices are done.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        rounding: Rounding,
        method: RoundingMethod | str,
        *,
        gptq: GptqSettings,
        dense_type: str,
        compensate: bool = True,
        kept: frozenset[str] = frozenset(),
        plugin: PluginRounding | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> None:
        self._layer, self._rounding, self._method = layer, rounding, method
        self._gptq, self._dense_type, self._kept = gptq, dense_type, kept
        self._compensate = compensate
        self._plugin, self._on_progress = plugin, on_progress
        self._plan = plan_layer(layer)
        self._done = RoundedLayer()
        self._powers: dict[str, float] = {}
        self._exact: LayerRunner | None = None

    @property
    def plan(self) -> LayerPlan:
        """The layer's linear layers."""
        return self._plan

    @property
    def exact(self) -> LayerRunner | None:
        """After `run` with exact states: what runs the layer as it was before it was rounded."""
        return self._exact

    def run(self, runner: LayerRunner | None, exact_states: HiddenStates | None = None) -> RoundedLayer:
        """Round every matrix. runner: runs the layer over the calibration data; RTN needs none.

        exact_states: the hidden states that the exact model has before this layer; without them each matrix is
        rounded as if nothing were lost before it.
        """
        if self._plugin is not None:
            for stage in self._plan.stages():
                for group in stage:
                    for name in group.members:
                        self._round_by_plugin(name, self._plugin)
        elif self._method == "rtn" or runner is None:
            for stage in self._plan.stages():
                for group in stage:
                    for name in group.members:
                        self._round_to_nearest(name, None, 0)
        else:
            if self._method == "awq":
                self._scale(runner)
            self._exact = None if exact_states is None else runner.twin(exact_states)
            for stage in self._plan.stages():
                self._round_stage(runner, stage)
        order = {name: place for place, name in enumerate(self._plan.modules())}
        self._done.reports.sort(key=lambda report: order[report.name])
        return self._done

    def _round_stage(self, runner: LayerRunner, stage: tuple[InputGroup, ...]) -> None:
        """GPTQ or AWQ over groups that do not feed each other; those with too few tokens share the moments of all."""
        together = InputMoments.zero(self._inputs(stage[0]), whole=False)
        poor: list[tuple[InputGroup, int]] = []
        for group, moments in self._moments(runner, stage):
            if group.expert is not None:
                together.hessian += moments.diagonal
                together.tokens += moments.tokens
            if self._is_poor(group, moments):
                poor.append((group, moments.tokens))
                continue
            for name in group.members:
                self._round_by_moments(name, moments)
        for group, tokens in poor:
            for name in group.members:
                self._round_to_nearest(name, together, tokens)

    def _scale(self, runner: LayerRunner) -> None:
        """AWQ: channel scales are found on the exact layer and folded into what is before each matrix."""
        plan = self._plan
        shared = (plan.attention, plan.output, plan.block.first, plan.block.second)
        moments = {group.leader: InputMoments.zero(self._inputs(group)) for group in shared}
        runner.watch(moments, plan.block.second.leader)
        folds = AwqFolds(self._layer, plan, runner, self._rounding, dense_type=self._dense_type, kept=self._kept)
        for group, fold in (
            (plan.attention, folds.into_input_norm),
            (plan.output, folds.into_values),
            (plan.block.first, folds.into_feed_forward_norm),
            (plan.block.second, folds.into_up),
        ):
            power = fold(moments.pop(group.leader))
            self._powers |= dict.fromkeys(group.members, power)
        for block in plan.routed:
            self._powers |= dict.fromkeys(block.first.members, self._powers[plan.block.first.leader])
        blocks = {block.second.leader: block for block in plan.routed}
        if blocks:
            for group, found in self._moments(runner, tuple(block.second for block in plan.routed)):
                if not self._is_poor(group, found):
                    power = folds.into_up_of(blocks[group.leader], found)
                    self._powers |= dict.fromkeys(group.members, power)

    def _moments(self, runner: LayerRunner, stage: tuple[InputGroup, ...]) -> Iterator[tuple[InputGroup, InputMoments]]:
        """The moments of each group's inputs, in as many passes over the data as memory asks for."""
        size = self._inputs(stage[0])
        at_once = max(1, _MOMENT_BYTES // (4 * size * size))
        stop = (self._plan.block.second if stage[-1].expert is not None else stage[-1]).leader
        for start in range(0, len(stage), at_once):
            part = stage[start : start + at_once]
            moments = {
                group.leader: InputMoments.zero(
                    self._inputs(group), drift=self._exact is not None and group.expert is None
                )
                for group in part
            }
            runner.watch(moments, stop, self._exact)
            for group in part:
                yield group, moments.pop(group.leader)

    def _inputs(self, group: InputGroup) -> int:
        return linear_of(self._layer, group.leader).in_features

    def _is_poor(self, group: InputGroup, moments: InputMoments) -> bool:
        """Whether an expert saw too few tokens to say what its inputs are like."""
        return group.expert is not None and moments.tokens < max(_FEWEST_TOKENS, self._inputs(group) // 8)

    def _round_to_nearest(self, name: str, together: InputMoments | None, tokens: int) -> None:
        """together: of the experts' inputs all together; nothing when RTN was asked for."""
        linear = linear_of(self._layer, name)
        if name in self._kept:
            self._keep(name)
            return
        metric, note = None, ""
        if together is not None and together.tokens:
            metric = together.diagonal / together.tokens
        if self._method != "rtn":
            note = f"only {tokens} tokens reached it: rounded to nearest, by the inputs of all experts"
        weight = linear.weight.detach()
        rounded = round_to_grid(weight, fit_grid(weight, self._rounding, metric), self._rounding)
        self._finish(name, rounded, None, MatrixReport(name, "rtn", tokens, 0.0, note=note))

    def _round_by_plugin(self, name: str, plugin: PluginRounding) -> None:
        if name in self._kept:
            self._keep(name)
            return
        rounded = plugin.round(linear_of(self._layer, name).weight.detach(), self._rounding)
        self._finish(name, rounded, None, MatrixReport(name, self._method, 0, 0.0))

    def _round_by_moments(self, name: str, moments: InputMoments) -> None:
        if name in self._kept:
            self._keep(name)
            return
        weight = linear_of(self._layer, name).weight.detach()
        if moments.drift is not None:
            weight = move_to_exact_outputs(weight, moments.hessian, moments.drift, moments.tokens)
        note = ""
        if self._method == "awq" and not self._compensate:
            rounded = round_by_awq(weight, moments.hessian, self._rounding)
        else:
            rounded, damping = round_by_gptq(weight, moments.hessian, self._rounding, self._gptq)
            note = "" if damping == self._gptq.damping else f"damping raised to {damping:g}"
        power = self._powers.get(name)
        report = MatrixReport(name, self._method, moments.tokens, 0.0, power=power, note=note)
        self._finish(name, rounded, moments, report, weight)

    def _keep(self, name: str) -> None:
        note = "its shape does not fit the format: kept in floating point"
        self._done.reports.append(MatrixReport(name, "none", 0, 0.0, note=note))
        self._tick()

    def _finish(
        self,
        name: str,
        rounded: RoundedMatrix,
        moments: InputMoments | None,
        report: MatrixReport,
        aimed: Tensor | None = None,
    ) -> None:
        """Put the rounded matrix into the layer, and note what it lost. aimed: the matrix that was to be rounded."""
        linear = linear_of(self._layer, name)
        weight, values = linear.weight.detach(), rounded.values()
        lost = float((values - weight).square().sum() / weight.square().sum().clamp_min(1e-30))
        output = None
        if moments is not None and moments.hessian.dim() == 2:
            goal = weight if aimed is None else aimed
            output = _form(values - goal, moments.hessian) / max(_form(goal, moments.hessian), 1e-30)
        linear.weight.data = values
        self._done.matrices[name] = rounded
        given = {key: value for key, value in asdict(report).items() if key not in ("weight_error", "output_error")}
        self._done.reports.append(MatrixReport(**given, weight_error=lost, output_error=output))
        self._tick()

    def _tick(self) -> None:
        if self._on_progress is not None:
            self._on_progress()


def _form(matrix: Tensor, hessian: Tensor) -> float:
    """The sum over rows of row hessian row^T."""
    step = max(1, (1 << 24) // matrix.shape[1])
    return sum(float(((part @ hessian) * part).sum()) for part in torch.split(matrix, step))
