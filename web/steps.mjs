// Live LoRA: the steps of the chosen job whose LoRA is kept; pressing one chooses it.
// @ts-check
import { app } from "../../scripts/app.js";
import { getJob } from "./jobs.mjs?v=2";
import { jobOf } from "./picker.mjs?v=2";
import { addElement } from "./widget.mjs?v=2";

const HEIGHT = 34;

export function addSteps(node) {
  const element = addElement(node, "steps", HEIGHT);
  element.classList.add("steps");
  element.addEventListener("click", ({ target }) => target.dataset.step && choose(node, Number(target.dataset.step)));
  element.addEventListener("pointerenter", () => showSteps(node)); // a training keeps more of them all the time
  node.livelora = { steps: element };
  const picker = node.widgets.find((widget) => widget.name === "job");
  const { callback } = picker;
  picker.callback = function () {
    const answer = callback?.apply(this, arguments);
    showSteps(node);
    return answer;
  };
}

/** Lists the steps that are kept now. */
export async function showSteps(node) {
  const { value } = node.widgets.find((widget) => widget.name === "job");
  const job = jobOf(value);
  const facts = await getJob(job);
  if (jobOf(node.widgets.find((widget) => widget.name === "job").value) !== job) return; // chosen anew meanwhile
  const steps = facts?.snapshots ?? [];
  const title = document.createElement("span");
  title.className = "muted";
  title.textContent = steps.length ? "Steps kept:" : facts ? "No step is kept yet." : job ? "This training is gone." : "No training yet.";
  node.livelora.steps.replaceChildren(title, ...steps.map(button));
}

function button(step) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = made.dataset.step = String(step);
  made.title = `Use the LoRA of step ${step}`;
  return made;
}

/** Chooses the LoRA of a step, as if it was typed. */
function choose(node, step) {
  set(node, "which", "step");
  set(node, "which.step", step);
  node.setDirtyCanvas(true, true);
}

function set(node, name, value) {
  const widget = node.widgets.find((one) => one.name === name);
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
}
