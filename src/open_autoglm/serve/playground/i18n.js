// SPDX-License-Identifier: Apache-2.0
// The page's language: looking up a text, filling its places, and translating what index.html holds.

import { STRINGS } from "./strings.js";

export const LANGUAGES = ["en", "zh"];

let current = "en";
const texts = { ...STRINGS };

/** The texts of another page, beside those that all pages have. */
export function addTexts(more) {
  Object.assign(texts, more);
}

/** The language that a browser's preference asks for. */
export function languageOf(preference) {
  return preference?.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function language() {
  return current;
}

export function setLanguage(code) {
  current = LANGUAGES.includes(code) ? code : "en";
}

/** The text of a key in the page's language, each `{name}` replaced by its value. */
export function t(key, values = {}) {
  const entry = texts[key];
  if (entry === undefined) throw new Error(`there is no text '${key}'`);
  return entry[LANGUAGES.indexOf(current)].replace(/\{(\w+)\}/g, (place, name) =>
    Object.hasOwn(values, name) ? String(values[name]) : place,
  );
}

/** A number as the language writes it, with so many decimals at most. */
export function number(value, decimals = 0) {
  return new Intl.NumberFormat(current === "zh" ? "zh-CN" : "en", { maximumFractionDigits: decimals }).format(value);
}

/** Fill in the texts of a tree: `data-text` names the content, `data-label`, `data-title`, `data-hint` attributes. */
export function translate(root) {
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) {
    const label = t(node.dataset.label);
    node.setAttribute("aria-label", label);
    if (node.matches("button, a")) node.setAttribute("title", label);
  }
  for (const node of root.querySelectorAll("[data-hint]")) node.setAttribute("placeholder", t(node.dataset.hint));
}
