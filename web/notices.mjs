// Tells the person how a training ends or goes wrong, wherever they are in ComfyUI: a toast, and if they want one, a sound
// or a notification of the browser.
// @ts-check
import { app } from "../../scripts/app.js";

const SOUND = "LiveLoRA.Notices.Sound";
const NOTIFICATION = "LiveLoRA.Notices.Notification";
const LONG = 15000;
const ENDS = {
  done: { severity: "success", summary: "LoRA trained" },
  failed: { severity: "error", summary: "LoRA training failed" },
};
const ACTIVE = ["queued", "preparing", "training", "finishing"];
/** Job → its state and warnings as they were told last. What was over before this page was opened is not told. */
const known = new Map();

/** The settings of ComfyUI's dialog. */
export const settings = [
  { id: SOUND, name: "Play a sound when a training ends", category: ["LiveLoRA", "Notices", "Sound"],
    type: "boolean", defaultValue: false },
  { id: NOTIFICATION, name: "Show a notification of the browser when a training ends",
    category: ["LiveLoRA", "Notices", "Notification"], type: "boolean", defaultValue: false,
    onChange: (wanted) => wanted && globalThis.Notification?.permission === "default" &&
      Notification.requestPermission() },
];

/** Tells what is new in the facts of a job. */
export function notice(facts) {
  const before = known.get(facts.job);
  known.set(facts.job, { state: facts.state, warnings: facts.warnings });
  if (!before) return;
  const ended = ENDS[facts.state];
  if (ended && ACTIVE.includes(before.state)) tell(ended, facts.name, outcome(facts));
  for (const warning of facts.warnings.filter((text) => !before.warnings.includes(text))) {
    tell({ severity: "warn", summary: "LoRA training" }, facts.name, warning);
  }
}

/** Says, when a training begins or has to wait, what ComfyUI's own message that comes now does not say. */
export function noticeBegin(facts) {
  notice(facts);
  if (facts.state === "queued" && facts.behind) {
    return toast("info", "LoRA training waits", `“${facts.name}” begins when “${facts.behind}” is done, which trains ` +
      "now. To begin at once, pause or stop that one. Neither takes anything from the other.");
  }
  if (facts.mode !== "background" || !ACTIVE.includes(facts.state)) return;
  const saves = facts.saves.length ? ` It will be saved as ${facts.saves.join(", ")} when it ends.` : "";
  toast("info", "LoRA training goes on", `“${facts.name}” trains in the background. ComfyUI's own message that the ` +
    `job is completed only means that it has begun.${saves}`);
}

function outcome({ state, message, saved }) {
  return state !== "failed" && saved.length ? `${message} Saved as ${saved.at(-1)}.` : message;
}

function tell({ severity, summary }, name, sentence) {
  const text = `“${name}”: ${sentence}`;
  toast(severity, summary, text);
  if (app.extensionManager.setting.get(SOUND)) beep();
  if (app.extensionManager.setting.get(NOTIFICATION) && globalThis.Notification?.permission === "granted") {
    new Notification(summary, { body: text, tag: name });
  }
}

function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: LONG });
}

/** A short, soft tone. */
function beep() {
  const context = new AudioContext();
  const tone = context.createOscillator();
  const volume = context.createGain();
  volume.gain.setValueAtTime(0.15, context.currentTime);
  volume.gain.exponentialRampToValueAtTime(0.001, context.currentTime + 0.6);
  tone.connect(volume).connect(context.destination);
  tone.onended = () => context.close();
  tone.start();
  tone.stop(context.currentTime + 0.6);
}
