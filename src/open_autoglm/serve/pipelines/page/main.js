// SPDX-License-Identifier: Apache-2.0
// The page of pipelines: the lists, and which run is shown, which the address after `#` says.

import { byId, element } from "../playground/dom.js";
import { addTexts, LANGUAGES, language, languageOf, setLanguage, t, translate } from "../playground/i18n.js";
import { apiKey, load, save, setApiKey } from "../playground/storage.js";
import { listPipelines, listRuns, startRun } from "./run_api.js";
import { RunPanel } from "./run_panel.js";
import { TEXTS } from "./texts.js";

const THEMES = ["auto", "light", "dark"];
const THEME_TEXTS = { auto: "themeAuto", light: "themeLight", dark: "themeDark" };
const STATES = ["waiting", "running", "paused", "done", "failed", "cancelled"];
const LOOK_MS = 5000;

addTexts(TEXTS);
setLanguage(load("language", languageOf(navigator.language)));

let pipelines = [];
let runs = [];
let next = null;
let workers = null;
const panel = new RunPanel(({ error, run }) => {
  if (error) fault(error);
  if (run) putRun(run);
});

function fault(error) {
  const needsKey = error.status === 401 || error.status === 403;
  if (needsKey) byId("key-form").hidden = false;
  byId("notice").textContent = error.message || t("unreachable");
  byId("notice").hidden = false;
  if (needsKey) byId("api-key").focus();
}

async function guarded(work) {
  try {
    await work();
    byId("notice").hidden = true;
  } catch (error) {
    fault(error);
  }
}

function pipelineCard(one) {
  const start = element(
    "button",
    { type: "button", "aria-label": t("startOf", { name: one.id }), click: () => guarded(() => begin(one.id)) },
    t("start"),
  );
  const trigger = one.trigger && t(one.trigger.kind, { value: one.trigger.value ?? "", timezone: one.trigger.timezone ?? "" });
  return element(
    "li",
    { class: "card", "data-pipeline": one.id },
    element("span", { class: "name" }, one.id),
    one.valid ? start : null,
    one.valid ? element("span", { class: "note" }, trigger) : element("span", { class: "faults" }, one.faults.join("\n")),
  );
}

function runCard(run) {
  return element(
    "li",
    { class: "card", "data-run": run.id, "aria-current": run.id === panel.id },
    element("a", { class: "name", href: `#${run.id}` }, run.id),
    element("span", { class: "state", "data-state": run.state }, t(`state_${run.state}`)),
    element("span", { class: "note" }, `${run.pipeline} · ${new Date(run.created).toLocaleString()}`),
  );
}

function draw() {
  const none = (key) => element("li", { class: "note" }, t(key));
  byId("pipelines").replaceChildren(...(pipelines.length ? pipelines.map(pipelineCard) : [none("noPipelines")]));
  drawRuns();
  panel.draw();
}

function drawRuns() {
  const cards = runs.length ? runs.map(runCard) : [element("li", { class: "note" }, t("noRuns"))];
  const focused = document.activeElement?.closest?.("[data-run]")?.dataset.run;
  byId("runs").replaceChildren(...cards);
  if (focused) document.querySelector(`[data-run="${CSS.escape(focused)}"] a`)?.focus();
  byId("more").hidden = next === null;
  byId("no-worker").textContent = t("noWorker");
  byId("no-worker").hidden = workers !== 0;
}

function putRun(run) {
  workers = run.workers;
  const index = runs.findIndex(({ id }) => id === run.id);
  if (index >= 0) runs[index] = run;
  drawRuns();
}

async function loadPipelines() {
  const found = await listPipelines();
  pipelines = found.data;
  workers = found.workers;
  byId("key-form").hidden = true;
}

async function loadRuns() {
  const found = await listRuns(byId("state").value, null);
  const kept = new Set(found.data.map(({ id }) => id));
  // A first page again: what "More" has shown beyond it stays.
  const beyond = runs.length > found.data.length && found.has_more ? runs.filter(({ id }) => !kept.has(id)) : [];
  runs = [...found.data, ...beyond];
  if (beyond.length === 0) next = found.after;
  workers = found.workers;
}

async function begin(pipeline) {
  const run = await startRun(pipeline);
  location.hash = run.id;
  await loadRuns();
  drawRuns();
}

function showHash() {
  const id = location.hash.slice(1);
  if (id === "") panel.close();
  else
    panel.open(id).then(() => {
      drawRuns();
      if (panel.id === id) byId("run-title").focus();
    });
  drawRuns();
}

function showTexts() {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  document.title = `Open-AutoGLM · ${t("pageTitle")}`;
  translate(document);
  byId("language").textContent = language() === "zh" ? "EN" : "中";
  byId("theme").textContent = t(THEME_TEXTS[theme()]);
  const chosen = byId("state").value;
  const options = STATES.map((state) => element("option", { value: state }, t(`state_${state}`)));
  byId("state").replaceChildren(element("option", { value: "" }, t("anyState")), ...options);
  byId("state").value = chosen;
  draw();
}

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  save("theme", name);
  showTexts();
}

byId("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]));
byId("language").addEventListener("click", () => {
  setLanguage(LANGUAGES[(LANGUAGES.indexOf(language()) + 1) % LANGUAGES.length]);
  save("language", language());
  showTexts();
});
byId("close").addEventListener("click", () => {
  location.hash = "";
});
byId("state").addEventListener("change", () => {
  runs = [];
  guarded(async () => {
    await loadRuns();
    drawRuns();
  });
});
byId("more").addEventListener("click", () =>
  guarded(async () => {
    const found = await listRuns(byId("state").value, next);
    runs.push(...found.data);
    next = found.after;
    drawRuns();
  }),
);
byId("api-key").value = apiKey();
byId("key-form").addEventListener("submit", (event) => event.preventDefault());
byId("api-key").addEventListener("change", () => {
  setApiKey(byId("api-key").value);
  connect();
});
window.addEventListener("hashchange", showHash);

async function connect() {
  await guarded(async () => {
    await Promise.all([loadPipelines(), loadRuns()]);
    draw();
    if (location.hash.length > 1 && panel.id === null) showHash();
  });
}

setInterval(() => {
  if (document.visibilityState !== "visible" || !byId("key-form").hidden) return;
  loadRuns().then(drawRuns, () => {});
}, LOOK_MS);

showTexts();
await connect();
document.documentElement.dataset.ready = "true";
