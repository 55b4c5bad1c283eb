// LoRA Train: how far the job is, how it goes, and the button that stops it.
// @ts-check
import { getJob, stopJob } from "./jobs.mjs?v=1";
import { addElement } from "./widget.mjs?v=1";

const RUNNING = ["queued", "preparing", "training", "finishing"];

export function addMonitor(node) {
  const element = addElement(node, "monitor", 74);
  element.innerHTML = `<button type="button" aria-label="Stop training and keep what was learned" hidden>Stop</button>
    <div class="state" aria-live="polite">Not trained yet.</div>
    <div role="progressbar" aria-label="Training progress" aria-valuemin="0"><div></div></div>
    <div class="muted losses"></div><div class="error"></div>`;
  const part = (selector) => element.querySelector(selector);
  part("button").onclick = () => stopJob(node.properties.livelora_job);
  node.livelora = {
    show(facts) {
      const bar = part("[role=progressbar]");
      bar.setAttribute("aria-valuemax", facts.steps);
      bar.setAttribute("aria-valuenow", facts.step);
      bar.firstElementChild.style.width = `${(100 * facts.step) / facts.steps}%`;
      part(".state").textContent = stateLine(facts);
      part(".losses").textContent = lossLine(facts);
      part(".error").textContent = [facts.state === "failed" ? facts.message : "", ...facts.warnings].filter(Boolean).join("\n");
      part("button").hidden = !RUNNING.includes(facts.state);
    },
  };
}

export async function showJob(node, job) {
  const facts = await getJob(job);
  if (facts) node.livelora.show(facts);
}

function stateLine(facts) {
  if (facts.state === "training") {
    const left = facts.eta == null ? "" : ` · ${duration(facts.eta)} left`;
    return `Step ${facts.step} of ${facts.steps}${left}`;
  }
  if (facts.state === "failed") return `Failed at step ${facts.step} of ${facts.steps}`;
  return facts.message || facts.state[0].toUpperCase() + facts.state.slice(1);
}

function lossLine(facts) {
  const parts = facts.loss == null ? [] : [`loss ${facts.loss.toFixed(4)}`];
  if (facts.validation.length) parts.push(heldOut(facts));
  if (facts.skipped) parts.push(`${facts.skipped} ${facts.skipped === 1 ? "step" : "steps"} skipped`);
  if (facts.learning_rate < 0) parts.push(`erasing, learning rate −${-Number(facts.learning_rate.toPrecision(2))}`);
  return parts.join(" · ");
}

/** From the base model's loss, where it is known, to the last one; and the best one, where that is another. */
function heldOut({ validation, validation_base: base, best }) {
  const first = base ?? validation[0][1];
  const [step, last] = validation.at(-1);
  const change = Math.round(100 * (last / first - 1));
  const sign = change < 0 ? "−" : change > 0 ? "+" : "";
  const line = `held-out ${first.toFixed(3)} → ${last.toFixed(3)} (${sign}${Math.abs(change)} %)`;
  return best && best[0] !== step ? `${line}, best ${best[1].toFixed(3)} at step ${best[0]}` : line;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
