// The one place that talks to the server: jobs over HTTP, their events over ComfyUI's websocket.
// @ts-check
import { api } from "../../scripts/api.js";

/** A job as the server tells it; null if it knows none of that id. */
export async function getJob(job) {
  if (!job) return null;
  const answer = await api.fetchApi(`/livelora/jobs/${encodeURIComponent(job)}`);
  return answer.ok ? answer.json() : null;
}

/** Ends a job after the step under way. */
export function stopJob(job) {
  return api.fetchApi(`/livelora/jobs/${encodeURIComponent(job)}/stop`, { method: "POST" });
}

/** Address of a preview picture. */
export function sampleUrl(job, file) {
  return api.apiURL(`/livelora/jobs/${encodeURIComponent(job)}/samples/${encodeURIComponent(file)}`);
}

/** Calls back with the facts of every `livelora.<name>` event. */
export function onEvent(name, callback) {
  api.addEventListener(`livelora.${name}`, (event) => callback(event.detail));
}

/** Events are not replayed: after a break of the connection everything is asked for again. */
export function onReconnected(callback) {
  api.addEventListener("reconnected", callback);
}
