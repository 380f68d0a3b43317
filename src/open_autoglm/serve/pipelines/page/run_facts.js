// SPDX-License-Identifier: Apache-2.0
// What follows from a run as the server tells it: which buttons make sense, how long things took, what the log shows.

const ENDED = ["done", "failed", "cancelled"];
const MOST_LINES = 2000;

export function hasEnded(state) {
  return ENDED.includes(state);
}

/** Which of the buttons make sense in a state. */
export function actionsOf(state) {
  return {
    cancel: !hasEnded(state) && state !== "cancelling",
    pause: state === "waiting" || state === "running",
    resume: state === "paused" || state === "pausing",
    retry: state === "failed" || state === "cancelled",
  };
}

/** Seconds between two times of the server's; up to now if there is no second; null if there is no first. */
export function secondsOf(from, to, now = Date.now()) {
  if (from === null || from === undefined) return null;
  const end = to === null || to === undefined ? now : Date.parse(to);
  return Math.max(0, (end - Date.parse(from)) / 1000);
}

/** `2/5` for a stage's items, and how many failed. */
export function itemsText(items) {
  const failed = items.failed ? ` (${items.failed} ✗)` : "";
  return `${items.done ?? 0}/${items.total}${failed}`;
}

/** Lines of logs in the order in which they came, the latest of them. */
export class LogBook {
  #lines = [];

  add({ stage, number, attempt, lines }) {
    const name = number ? `${stage}[${number}]` : stage;
    const prefix = attempt > 1 ? `${name}#${attempt}` : name;
    for (const line of lines) this.#lines.push({ stage, text: `${prefix}: ${line}` });
    if (this.#lines.length > MOST_LINES) this.#lines.splice(0, this.#lines.length - MOST_LINES);
  }

  /** All lines, or those of one stage. */
  text(stage = null) {
    return this.#lines.filter((line) => stage === null || line.stage === stage).map((line) => line.text).join("\n");
  }
}
