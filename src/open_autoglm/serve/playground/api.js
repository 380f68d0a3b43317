// SPDX-License-Identifier: Apache-2.0
// The server's API: models, chat completions as a stream of chunks, label probabilities. The key goes in a header only.

import { EventStreamParser } from "./event_stream.js";
import { apiKey } from "./storage.js";

export const BASE_URL = new URL("v1", document.baseURI).href;
export const CHAT_URL = `${BASE_URL}/chat/completions`;

/** A fault that the server told of, in its words; `status` 0 where the server was not reached or broke off. */
export class ApiError extends Error {
  constructor(message, status, parameter = null) {
    super(message);
    this.status = status;
    this.parameter = parameter;
  }
}

/** Ask a route below /v1; a body is sent as JSON. Raises ApiError. */
export async function request(path, { body, signal } = {}) {
  const headers = { Accept: "application/json, text/event-stream" };
  const key = apiKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(`${BASE_URL}${path}`, {
    method: body === undefined ? "GET" : "POST",
    body: body === undefined ? undefined : JSON.stringify(body),
    headers,
    signal,
    cache: "no-store",
    redirect: "error",
  }).catch((error) => {
    if (signal?.aborted) throw error;
    throw new ApiError("", 0);
  });
  if (response.ok) return response;
  const text = await response.text();
  throw errorOf(text, response.status);
}

function errorOf(text, status) {
  try {
    const { error } = JSON.parse(text);
    return new ApiError(String(error.message), status, error.param ?? null);
  } catch {
    return new ApiError(text.slice(0, 500) || `HTTP ${status}`, status);
  }
}

/** The models that the server has. Raises ApiError. */
export async function listModels() {
  const { data } = await (await request("/models")).json();
  return data.filter((model) => typeof model?.id === "string");
}

/** The chunks of an answer as they come; a whole completion counts as one. Raises ApiError, also in mid-stream. */
export async function* completionChunks(body, signal) {
  const response = await request("/chat/completions", { body, signal });
  if (!response.headers.get("content-type")?.includes("text/event-stream")) {
    yield await response.json();
    return;
  }
  const parser = new EventStreamParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (true) {
      const { done, value } = await reader.read().catch((error) => {
        if (signal.aborted) throw error;
        throw new ApiError("", 0);
      });
      if (done) throw new ApiError("", 0); // a stream ends with [DONE]
      for (const data of parser.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(String(chunk.error.message), 200, chunk.error.param ?? null);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have ended with an error that has been told already
  }
}

/** What `/v1/classify` says of a text. Raises ApiError. */
export async function classify(model, input) {
  return (await request("/classify", { body: { model, input } })).json();
}
