// SPDX-License-Identifier: Apache-2.0
// Where the boxes of a pipeline's graph lie: layers from left to right, and a curve for each need.

const LETTER = 7.9;
const HEIGHT = 46;
const ROW_GAP = 18;
const COLUMN_GAP = 56;
const MARGIN = 14;
const LONGEST = 28;

/** A text that fits into a box. */
export function fitted(text) {
  const letters = [...text];
  return letters.length <= LONGEST ? text : `${letters.slice(0, LONGEST - 1).join("")}…`;
}

/** Letters as wide as Latin ones; those of Chinese take two places. */
export function places(text) {
  return [...text].reduce((sum, letter) => sum + (letter.codePointAt(0) > 0x2e7f ? 2 : 1), 0);
}

/** stages: with `stage`, `module`, `needs` and `layer`. Gives boxes by stage, curves, and the size of it all. */
export function layOut(stages) {
  const columns = [];
  for (const one of stages) (columns[one.layer] ??= []).push(one);
  const tallest = Math.max(1, ...columns.map((column) => column.length));
  const height = tallest * (HEIGHT + ROW_GAP) - ROW_GAP + 2 * MARGIN;
  const boxes = new Map();
  let x = MARGIN;
  for (const column of columns) {
    const width = Math.max(...column.map((one) => Math.max(places(fitted(one.stage)), places(fitted(one.module))))) * LETTER + 26;
    const top = (height - column.length * (HEIGHT + ROW_GAP) + ROW_GAP) / 2;
    column.forEach((one, row) => boxes.set(one.stage, { x, y: top + row * (HEIGHT + ROW_GAP), width, height: HEIGHT }));
    x += width + COLUMN_GAP;
  }
  const edges = stages.flatMap((one) => one.needs.map((need) => curve(boxes.get(need), boxes.get(one.stage), need, one.stage)));
  return { boxes, edges, width: x - COLUMN_GAP + MARGIN, height };
}

function curve(from, to, need, stage) {
  const [startX, startY] = [from.x + from.width, from.y + from.height / 2];
  const [endX, endY] = [to.x - 2, to.y + to.height / 2];
  const middle = (startX + endX) / 2;
  return { need, stage, path: `M${startX} ${startY} C${middle} ${startY} ${middle} ${endY} ${endX} ${endY}` };
}
