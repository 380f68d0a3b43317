// SPDX-License-Identifier: Apache-2.0
// The server's routes about pipelines, and the events of a run as they come.

import { ApiError, request } from "../playground/api.js";
import { EventStreamParser } from "../playground/event_stream.js";

async function get(path, signal) {
  return (await request(path, { signal })).json();
}

export function listPipelines() {
  return get("/pipelines");
}

/** A page of runs. after: the last run of the page before. */
export function listRuns(state, after) {
  const query = new URLSearchParams({ limit: "20" });
  if (state) query.set("state", state);
  if (after) query.set("after", after);
  return get(`/runs?${query}`);
}

export function getRun(run, signal) {
  return get(`/runs/${encodeURIComponent(run)}?lines=0`, signal);
}

export async function startRun(pipeline) {
  return (await request(`/pipelines/${encodeURIComponent(pipeline)}/runs`, { body: {} })).json();
}

/** what: `cancel`, `pause`, `resume` or `retry`. body: its fields. */
export async function changeRun(run, what, body = {}) {
  return (await request(`/runs/${encodeURIComponent(run)}/${what}`, { body })).json();
}

/** The events of a run until it ends. Raises ApiError when the stream breaks off. */
export async function* runEvents(run, after, signal) {
  const response = await request(`/runs/${encodeURIComponent(run)}/events?after=${after}`, { signal });
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
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(String(event.error.message), 200);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
