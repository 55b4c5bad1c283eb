// The one place that talks to the server: jobs over HTTP, their events over ComfyUI's websocket.
// @ts-check
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const JOBS = "/livelora/jobs";
/** What may queue the job's workflow again; this browser then hears how that goes. */
const QUEUING = ["resume", "extend", "duplicate"];

/** Every job, oldest first; none if the server cannot tell. */
export async function listJobs() {
  const answer = await api.fetchApi(JOBS);
  return answer.ok ? answer.json() : [];
}

/** A job as the server tells it; null if it knows none of that id. */
export async function getJob(job) {
  if (!job) return null;
  const answer = await api.fetchApi(address(job));
  return answer.ok ? answer.json() : null;
}

/** Every step of a job that was not skipped, and its loss: from the job's facts if all are there, else from its record. */
export async function getLosses({ job, step, losses }) {
  if (losses.length === step) return { steps: losses.map((_, i) => i + 1), losses };
  const lines = [];
  let page = { last: 0, lines: [] };
  do {
    const answer = await api.fetchApi(`${address(job)}/metrics?since=${page.last}`);
    page = answer.ok ? await answer.json() : { lines: [] };
    lines.push(...page.lines.filter((line) => line.loss != null));
  } while (page.lines.length);
  return { steps: lines.map((line) => line.step), losses: lines.map((line) => line.loss) };
}

/** Does something with a job and gives the server's answer. If it is refused, tells the person why and gives null. */
export async function act(job, action, body = {}) {
  const client = QUEUING.includes(action) && api.clientId ? { client_id: api.clientId } : {};
  const request = { method: "POST", body: JSON.stringify({ ...body, ...client }) };
  const answer = await api.fetchApi(`${address(job)}/${action}`, request).catch(() => null);
  if (!answer) return tell("ComfyUI does not answer. See whether it still runs, then try again.");
  const facts = await answer.json().catch(() => ({}));
  return answer.ok ? facts : tell(facts.error ?? `ComfyUI refused (${answer.status}). Its log may say why.`);
}

/** Puts a preview picture into an <img>. That asks in nobody's name; where ComfyUI has several users, we ask for it. */
export async function showSample(image, job, file) {
  const path = `${address(job)}/samples/${encodeURIComponent(file)}`;
  image.dataset.file = file;
  if (!api.user) {
    image.src = api.apiURL(path);
    return;
  }
  const answer = await api.fetchApi(path);
  const picture = answer.ok && (await answer.blob());
  if (!picture || image.dataset.file !== file) return; // another one is to be shown by now
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(picture);
}

/** Calls back with the facts of every `livelora.<name>` event. */
export function onEvent(name, callback) {
  api.addEventListener(`livelora.${name}`, (event) => callback(event.detail));
}

/** Events are not replayed: after a break of the connection everything is asked for again. */
export function onReconnected(callback) {
  api.addEventListener("reconnected", callback);
}

function address(job) {
  return `${JOBS}/${encodeURIComponent(job)}`;
}

/** Tells the person in the corner of the page, and gives null. */
export function tell(sentence) {
  app.extensionManager.toast.add({ severity: "warn", summary: "LoRA training", detail: sentence, life: 10000 });
  return null;
}
