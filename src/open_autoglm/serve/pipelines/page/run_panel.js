// SPDX-License-Identifier: Apache-2.0
// One run on the page: its graph, its stages, its log, kept up to date by its events until it ends.

import { byId, element } from "../playground/dom.js";
import { number, t } from "../playground/i18n.js";
import { graphView } from "./graph_view.js";
import { changeRun, getRun, runEvents } from "./run_api.js";
import { actionsOf, hasEnded, itemsText, LogBook, secondsOf } from "./run_facts.js";

const REFRESH_MS = 300;
const RECONNECT_MS = 2000;
const ACTIONS = ["cancel", "pause", "resume", "retry"];

export class RunPanel {
  #run = null;
  #logs = new LogBook();
  #chosen = null;
  #abort = new AbortController();
  #refreshing = null;
  #tell;
  #said = "";

  /** tell: called with `{run}` when it has changed and with `{error}` when something went wrong. */
  constructor(tell) {
    this.#tell = tell;
    for (const name of ACTIONS) byId(name).addEventListener("click", () => this.#ask(name));
  }

  get id() {
    return this.#run?.id ?? null;
  }

  /** Show a run and follow it. */
  async open(id) {
    this.close();
    const signal = this.#abort.signal;
    try {
      this.#run = await getRun(id, signal);
    } catch (error) {
      if (!signal.aborted) this.#tell({ error });
      return;
    }
    if (signal.aborted) return;
    this.#said = this.#run.state;
    byId("run").hidden = false;
    this.draw();
    this.#follow(id, signal);
  }

  close() {
    this.#abort.abort();
    this.#abort = new AbortController();
    clearTimeout(this.#refreshing);
    this.#refreshing = null;
    this.#run = null;
    this.#chosen = null;
    this.#logs = new LogBook();
    byId("run").hidden = true;
  }

  async #follow(id, signal) {
    while (!signal.aborted) {
      this.#logs = new LogBook(); // a stream begins with the end of each log
      try {
        for await (const event of runEvents(id, this.#run.last_event, signal)) {
          if (signal.aborted) return;
          if (event.type === "log") {
            this.#logs.add(event);
            this.#drawLog();
          } else this.#refreshSoon(id, signal);
        }
        await this.#refresh(id, signal);
        if (this.#run !== null && hasEnded(this.#run.state)) return;
      } catch (error) {
        if (signal.aborted) return;
        if (error.status >= 400) this.#tell({ error });
      }
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
    }
  }

  #refreshSoon(id, signal) {
    this.#refreshing ??= setTimeout(() => {
      this.#refreshing = null;
      this.#refresh(id, signal);
    }, REFRESH_MS);
  }

  async #refresh(id, signal) {
    try {
      const run = await getRun(id, signal);
      if (signal.aborted) return;
      this.#run = run;
    } catch (error) {
      if (!signal.aborted) this.#tell({ error });
      return;
    }
    this.draw();
    this.#tell({ run: this.#run });
  }

  async #ask(what, body = {}) {
    const run = this.#run;
    if (run === null || (what === "cancel" && !window.confirm(t("confirmCancel")))) return;
    try {
      await changeRun(run.id, what, body);
      await this.open(run.id);
      this.#tell({ run: this.#run });
    } catch (error) {
      this.#tell({ error });
    }
  }

  #choose(stage) {
    this.#chosen = this.#chosen === stage ? null : stage;
    this.draw();
    document.querySelector(`.box[data-stage="${CSS.escape(stage)}"]`)?.focus();
  }

  /** Show what is known, in the page's language. */
  draw() {
    const run = this.#run;
    if (run === null) return;
    byId("run-title").textContent = t("runTitle", { pipeline: run.pipeline, run: run.id });
    byId("run-state").textContent = t(`state_${run.state}`);
    byId("run-state").dataset.state = run.state;
    const seconds = secondsOf(run.created, hasEnded(run.state) ? run.updated : null);
    byId("run-times").textContent = t("runTimes", { created: new Date(run.created).toLocaleString(), seconds: number(seconds, 1) });
    const possible = actionsOf(run.state);
    for (const name of ACTIONS) byId(name).hidden = !possible[name];
    byId("run-reason").textContent = run.reason ?? "";
    byId("run-reason").hidden = run.state !== "failed" || !run.reason;
    byId("graph").replaceChildren(graphView(run.stages, this.#chosen, (stage) => this.#choose(stage)));
    byId("stages").replaceChildren(...run.stages.map((stage) => this.#row(stage, hasEnded(run.state))));
    byId("payload").textContent = this.#result(run);
    this.#drawLog();
    if (this.#said !== run.state) {
      this.#said = run.state;
      byId("live").replaceChildren(element("p", {}, t("stateSaid", { state: t(`state_${run.state}`) })));
    }
  }

  #row(stage, canRetry) {
    const seconds = secondsOf(stage.started, stage.ended);
    const again = element(
      "button",
      { type: "button", class: "quiet", "aria-label": t("retryFromStage", { stage: stage.stage }), click: () => this.#ask("retry", { from: stage.stage }) },
      t("retryFrom"),
    );
    return element(
      "tr",
      { "data-stage": stage.stage },
      element("td", {}, stage.stage),
      element("td", {}, element("span", { class: "state", "data-state": stage.state }, t(`state_${stage.state}`))),
      element("td", {}, itemsText(stage.items)),
      element("td", {}, number(stage.attempts)),
      element("td", {}, seconds === null ? "" : number(seconds, 1)),
      element("td", {}, canRetry ? again : null),
    );
  }

  #result(run) {
    if (run.payload !== null) return JSON.stringify(run.payload, null, 2);
    return run.payload_bytes > 0 ? t("largeResult", { bytes: number(run.payload_bytes) }) : t("noResult");
  }

  #drawLog() {
    const area = byId("log");
    const atEnd = area.scrollTop + area.clientHeight >= area.scrollHeight - 4;
    area.textContent = this.#logs.text(this.#chosen) || t("noLog");
    if (atEnd) area.scrollTop = area.scrollHeight;
    byId("log-of").textContent = this.#chosen === null ? "" : t("logOfStage", { stage: this.#chosen });
  }
}
