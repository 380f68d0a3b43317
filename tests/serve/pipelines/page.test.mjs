// SPDX-License-Identifier: Apache-2.0
// What has no DOM in it of the page of pipelines, by node --test; test_page.py copies the page beside this file.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { fitted, layOut, places } from "./pipelines/graph_layout.js";
import { actionsOf, itemsText, LogBook, secondsOf } from "./pipelines/run_facts.js";
import { TEXTS } from "./pipelines/texts.js";
import { STRINGS } from "./playground/strings.js";

/** Random stages in layers, each needing some of earlier ones. */
function randomStages(seed) {
  let state = seed;
  const random = (limit) => (state = (state * 1103515245 + 12345) & 0x7fffffff) % limit;
  const stages = [];
  for (let index = 0; index < 2 + random(14); index++) {
    const needs = stages.filter(() => random(3) === 0).map((one) => one.stage);
    const layer = Math.max(-1, ...stages.filter((one) => needs.includes(one.stage)).map((one) => one.layer)) + 1;
    stages.push({ stage: `s${index}${"x".repeat(random(40))}`, module: "模块".repeat(random(20)), needs, layer });
  }
  return stages;
}

test("boxes never overlap, lie inside, and every need goes from left to right", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const stages = randomStages(seed);
    const { boxes, edges, width, height } = layOut(stages);
    assert.equal(boxes.size, stages.length);
    const all = [...boxes.values()];
    for (const box of all) {
      assert.ok(box.x >= 0 && box.y >= 0 && box.x + box.width <= width && box.y + box.height <= height);
      for (const other of all) {
        if (other === box) continue;
        const apart = box.x + box.width < other.x || other.x + other.width < box.x || box.y + box.height < other.y || other.y + other.height < box.y;
        assert.ok(apart);
      }
    }
    assert.equal(edges.length, stages.reduce((sum, one) => sum + one.needs.length, 0));
    for (const { need, stage, path } of edges) {
      const [from, to] = [boxes.get(need), boxes.get(stage)];
      assert.ok(from.x + from.width < to.x);
      assert.ok(path.startsWith(`M${from.x + from.width} ${from.y + from.height / 2} `));
    }
  }
});

test("texts are cut to fit, by letters and not inside them", () => {
  assert.equal(fitted("short"), "short");
  assert.equal([...fitted("😀".repeat(50))].length, 28);
  assert.equal(places("ab中"), 4);
});

test("a state offers what the server takes in it", () => {
  assert.deepEqual(actionsOf("running"), { cancel: true, pause: true, resume: false, retry: false });
  assert.deepEqual(actionsOf("paused"), { cancel: true, pause: false, resume: true, retry: false });
  assert.deepEqual(actionsOf("failed"), { cancel: false, pause: false, resume: false, retry: true });
  assert.deepEqual(actionsOf("done"), { cancel: false, pause: false, resume: false, retry: false });
  assert.equal(actionsOf("cancelling").cancel, false);
});

test("times and items", () => {
  assert.equal(secondsOf(null, null), null);
  assert.equal(secondsOf("2026-01-01T00:00:00.500Z", "2026-01-01T00:00:02.000Z"), 1.5);
  assert.equal(secondsOf("2026-01-01T00:00:00Z", null, Date.parse("2026-01-01T00:01:00Z")), 60);
  assert.equal(secondsOf("2026-01-01T00:00:09Z", "2026-01-01T00:00:00Z"), 0);
  assert.equal(itemsText({ total: 5, done: 2, failed: 1 }), "2/5 (1 ✗)");
});

test("the log keeps the order, tells stages apart and is bounded", () => {
  const log = new LogBook();
  log.add({ stage: "a", number: 0, attempt: 1, lines: ["one"] });
  log.add({ stage: "b", number: 3, attempt: 2, lines: ["two"] });
  assert.equal(log.text(), "a: one\nb[3]#2: two");
  assert.equal(log.text("b"), "b[3]#2: two");
  log.add({ stage: "a", number: 0, attempt: 1, lines: Array.from({ length: 3000 }, (_, index) => `${index}`) });
  assert.equal(log.text().split("\n").length, 2000);
  assert.ok(log.text().endsWith("a: 2999"));
});

test("every text is there in both languages, is used, and none hides one of the playground's", () => {
  const files = readdirSync("pipelines").filter((name) => name !== "texts.js");
  const sources = files.map((name) => readFileSync(`pipelines/${name}`, "utf8")).join("\n");
  for (const [key, entry] of Object.entries(TEXTS)) {
    assert.equal(entry.length, 2, key);
    const [places_en, places_zh] = entry.map((text) => [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort());
    assert.deepEqual(places_en, places_zh, key);
    if (!/^(state_|cron|file|webhook|queue|after|manual)/.test(key)) assert.ok(sources.includes(`"${key}"`), `${key} is not used`);
  }
  for (const match of sources.matchAll(/data-(?:text|label)="(\w+)"|\bt\("(\w+)"/g)) {
    const key = match[1] ?? match[2];
    assert.ok(key in TEXTS || key in STRINGS, `there is no text ${key}`);
  }
});
