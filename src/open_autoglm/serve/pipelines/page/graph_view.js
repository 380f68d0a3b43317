// SPDX-License-Identifier: Apache-2.0
// The graph as SVG, made node by node. A box is a button: it chooses whose log is shown.

import { t } from "../playground/i18n.js";
import { fitted, layOut } from "./graph_layout.js";
import { secondsOf } from "./run_facts.js";

const SVG = "http://www.w3.org/2000/svg";

function drawing(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

/** The graph of a run's stages. chosen: a stage's name or null; choose: called with the stage that is clicked. */
export function graphView(stages, chosen, choose) {
  const { boxes, edges, width, height } = layOut(stages);
  const head = drawing("path", { d: "M0 0 L8 4 L0 8 z", class: "head" });
  const marker = { id: "arrow", viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto" };
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, width, height }, drawing("defs", {}, drawing("marker", marker, head)));
  for (const edge of edges) svg.append(drawing("path", { d: edge.path, class: "edge", "marker-end": "url(#arrow)" }));
  for (const one of stages) svg.append(boxView(one, boxes.get(one.stage), one.stage === chosen, choose));
  return svg;
}

function boxView(one, place, isChosen, choose) {
  const { x, y, width, height } = place;
  const seconds = secondsOf(one.started, one.ended);
  const state = t(`state_${one.state}`);
  const more = seconds === null ? fitted(one.module) : fitted(`${state} ${seconds.toFixed(1)} s`);
  const box = drawing(
    "g",
    { class: "box", "data-state": one.state, "data-stage": one.stage, role: "button", tabindex: 0, "aria-pressed": isChosen },
    drawing("rect", { x, y, width, height, rx: 7 }),
    drawing("text", { x: x + 12, y: y + 19, class: "title" }, fitted(one.stage)),
    drawing("text", { x: x + 12, y: y + 36, class: "more" }, more),
    drawing("title", {}, `${one.stage} (${one.module}): ${state}`),
  );
  box.setAttribute("aria-label", t("boxLabel", { stage: one.stage, state }));
  box.addEventListener("click", () => choose(one.stage));
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(one.stage);
  });
  return box;
}
