// What a person must say before something is done with a job.
// @ts-check
import { app } from "../../scripts/app.js";
import { getJob, tell } from "./jobs.mjs?v=2";

const QUESTIONS = { extend: askSteps, discard: askDiscard, delete: askDelete };

/** The body of an action's request; null if the person would rather not. */
export async function ask(action, facts) {
  if (action === "move") return { position: 0 };
  return action in QUESTIONS ? QUESTIONS[action](facts) : {};
}

async function askSteps({ job, steps: known }) {
  const text = await app.extensionManager.dialog.prompt({
    title: "Extend training",
    message: `Train until which step? It would end at step ${known}.`,
    defaultValue: String(known + 100),
  });
  if (!text?.trim()) return null;
  const { steps } = (await getJob(job)) ?? { steps: known }; // another tab may have extended it meanwhile
  const until = Number(text);
  if (Number.isInteger(until) && until > steps) return { steps: until - steps };
  return tell(`Training goes on until a step after ${steps}, got "${text.trim()}". Give a whole number above ${steps}.`);
}

function askDiscard(facts) {
  return confirm("Discard what was learned?", "default", `“${facts.name}” stops and forgets what it learned in ${facts.step === 1 ? "1 step" : `${facts.step} steps`}. ` +
    "Its states, pictures and LoRA are removed, for good. Stop keeps them.");
}

async function askDelete(facts) {
  const bytes = (await getJob(facts.job))?.disk_bytes ?? 0;
  return confirm("Delete this job?", "delete", `“${facts.name}” goes with its states, pictures and LoRA, for good. ` +
    `This frees ${size(bytes)}. LoRAs that Save LoRA wrote stay.`);
}

async function confirm(title, type, message) {
  return (await app.extensionManager.dialog.confirm({ title, type, message })) ? {} : null;
}

function size(bytes) {
  if (bytes < 1e6) return `${Math.ceil(bytes / 1e3)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
