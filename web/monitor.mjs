// LoRA Train: how far the job is, how it goes, and the buttons for what can be done with it now.
// @ts-check
import { ask } from "./actions.mjs?v=2";
import { addCurve } from "./curve.mjs?v=2";
import { act, getJob } from "./jobs.mjs?v=2";
import { tieMenu } from "./menu.mjs?v=2";
import { addElement } from "./widget.mjs?v=2";

const NOTHING = {
  state: "none", message: "Not trained yet.", actions: [], warnings: [], step: 0, steps: 1, loss: null, validation: [],
};
const PAUSE = ["pause", "pi pi-pause", "Pause training"];
const RESUME = ["resume", "pi pi-play", "Resume training"];
const WORK = { waiting: "waiting for prompts", loading: "loading the model", "held-out": "held-out loss" };
const SPEED = "How near a step is to the fastest that the device multiplies matrices, and what took most of the time.";
const COLOURS = ["#4c72b0", "#dd8452", "#55a868"];
const PARTS = `
  <div class="head">
    <div class="state" aria-live="polite"></div>
    <button type="button" class="go"><i aria-hidden="true"></i></button>
    <button type="button" data-action="stop" title="Stop training and keep what was learned"
      aria-label="Stop training and keep what was learned"><i class="pi pi-stop" aria-hidden="true"></i></button>
    <button type="button" class="more" title="More" aria-label="More" aria-haspopup="menu" aria-expanded="false"
      ><i class="pi pi-ellipsis-v" aria-hidden="true"></i></button>
    <div role="menu" popover aria-label="More">
      <button type="button" role="menuitem" tabindex="-1" data-action="export">Save LoRA file</button>
      <button type="button" role="menuitem" tabindex="-1" data-action="sample">Sample now</button>
      <button type="button" role="menuitem" tabindex="-1" data-action="extend">Extend…</button>
      <button type="button" role="menuitem" tabindex="-1" data-action="move">Move to the front</button>
      <button type="button" role="menuitem" tabindex="-1" data-action="discard">Discard…</button>
      <button type="button" role="menuitem" tabindex="-1" data-action="delete">Delete…</button>
    </div>
  </div>
  <div role="progressbar" aria-label="Training progress" aria-valuemin="0"><div></div></div>
  <div class="muted losses"></div><div class="muted files"></div>
  <details class="muted costs"><summary></summary><div class="memory"></div><div class="room" role="img"
    aria-label="Memory: blue weights, orange LoRA and optimizer, green a step"></div><div class="speed" title="${SPEED}"></div></details>
  <div class="error"></div><div class="advice"></div>`;

export function addMonitor(node) {
  const element = addElement(node, "monitor", 244);
  element.classList.add("monitor");
  element.innerHTML = PARTS;
  tieMenu(element.querySelector(".more"), element.querySelector("[role=menu]"));
  const curve = addCurve(element);
  let told = 0, asked = 0, answered = 0;
  const draw = (facts) => {
    live.shown = facts;
    showButtons(element, facts);
    showBar(element, facts);
    showLines(element, facts);
    curve.tell(facts);
  };
  const live = {
    curve,
    /** The facts on show. */
    shown: NOTHING,
    /** Shows what was just told. */
    show(facts) {
      told += 1;
      draw(facts);
    },
    /** Shows the job that a request answers, unless something newer is known by then: by an event, or by the answer to
     * a later request. */
    async showAnswer(request) {
      const before = told;
      const mine = ++asked;
      const facts = await request;
      if (!facts?.state) return;
      if (told === before && mine >= answered) {
        answered = mine;
        draw(facts);
      }
      if (facts.losses && facts.job === live.shown.job) await curve.fill(facts);
    },
  };
  node.livelora = live;
  live.show(NOTHING);
  onPress(element, live);
}

/** Shows a job as the server knows it; none, if the server does not. */
export function showJob(node, job) {
  return node.livelora.showAnswer(getJob(job).then((facts) => facts ?? NOTHING));
}

/** Does what is pressed, one thing at a time: who presses twice wants it once. */
function onPress(element, live) {
  let busy = false;
  element.addEventListener("click", async (event) => {
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (!action || busy) return;
    busy = true;
    try {
      const { job } = live.shown;
      const body = await ask(action, live.shown);
      if (body) await live.showAnswer(act(job, action, body));
    } finally {
      busy = false;
    }
  });
}

/** What the server says is possible now can be pressed. */
function showButtons(element, facts) {
  const can = (action) => facts.actions.includes(action) && !(action === "move" && facts.position === 0);
  const go = element.querySelector(".go");
  const [action, icon, label] = can("resume") ? RESUME : PAUSE;
  Object.assign(go, { title: label, ariaLabel: label });
  go.dataset.action = action;
  go.firstElementChild.className = icon;
  for (const button of element.querySelectorAll("[data-action]")) button.hidden = !can(button.dataset.action);
  element.querySelector(".more").hidden = !element.querySelector("[role=menuitem]:not([hidden])");
}

function showBar(element, facts) {
  const bar = element.querySelector("[role=progressbar]");
  element.dataset.state = facts.state;
  bar.setAttribute("aria-valuemax", facts.steps);
  bar.setAttribute("aria-valuenow", facts.step);
  bar.firstElementChild.style.width = `${(100 * facts.step) / facts.steps}%`;
}

function showLines(element, facts) {
  const failure = facts.state === "failed" ? facts.message : "";
  element.querySelector(".state").textContent = stateLine(facts);
  element.querySelector(".losses").textContent = lossLine(facts);
  element.querySelector(".files").textContent = fileLine(facts);
  showCosts(element, facts);
  element.querySelector(".error").textContent = failure;
  element.querySelector(".advice").textContent = facts.warnings.join("\n");
}

/** The seconds of a step and the memory, in a line that unfolds what else is known of them. */
function showCosts(element, facts) {
  const costs = { memory: memoryCosts(facts), speed: speedCosts(facts) };
  const short = [costs.speed.short, costs.memory.short].filter(Boolean);
  element.querySelector(".costs").hidden = !short.length;
  element.querySelector("summary").textContent = short.join(" · ");
  for (const [name, { more }] of Object.entries(costs)) element.querySelector(`.${name}`).textContent = more ?? "";
  Object.assign(element.querySelector(".room"), { hidden: !costs.memory.parts, title: "Weights, LoRA and optimizer, a step" })
    .style.background = costs.memory.parts ? asBar(costs.memory.parts) : "";
}

/** Shares of a whole, in the colours of LoRA Memory Plan's bar. */
function asBar(parts) {
  let end = 0;
  const stops = parts.map((part, i) => `${COLOURS[i]} ${100 * end}% ${100 * (end += part)}%`);
  return `linear-gradient(to right, ${stops.join(", ")}, var(--border-color) ${100 * end}%)`;
}

/** What the plan says and, on a graphics card, what a step really took. */
function memoryCosts({ state, memory }) {
  if (!memory || !["queued", "preparing", "training", "failed"].includes(state)) return {};
  return {
    short: `memory ${amount(memory.weights + memory.needed)} of ${amount(memory.available)}`,
    more: [memory.sentence, memory.advice, memory.measured && `The last step used ${amount(memory.measured)}.`].filter(Boolean).join(" "),
    parts: [memory.weights, memory.adapter + memory.optimizer, memory.step].map((part) => part / memory.available),
  };
}

/** How fast it goes, and what takes most of the time. */
function speedCosts({ state, seconds_per_step: seconds, of_peak: share, spent = {} }) {
  if (!seconds || ["queued", "failed"].includes(state)) return {};
  const parts = share ? [`${Math.round(100 * share)} % of the device's peak`] : [];
  const total = Object.values(spent).reduce((sum, part) => sum + part, 0);
  const most = Object.entries(spent).sort((a, b) => b[1] - a[1]).slice(0, 3).filter(([, part]) => part >= total / 100);
  if (most.length) parts.push(most.map(([work, part]) => `${WORK[work] ?? work} ${Math.round((100 * part) / total)} %`).join(", "));
  return { short: `${seconds < 10 ? seconds.toFixed(2) : Math.round(seconds)} s a step`, more: parts.join(" · ") };
}

function amount(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`;
}

function stateLine(facts) {
  const { state, message, step, steps } = facts;
  if (state === "training") return `Step ${step} of ${steps}${whatNext(facts)}`;
  if (state === "failed") return `Failed at step ${step} of ${steps}`;
  return message || (state === "queued" ? waiting(facts) : state[0].toUpperCase() + state.slice(1));
}

/** A training that cannot be paused is about to end or to pause: the server says which. */
function whatNext({ actions, message, eta }) {
  if (!actions.includes("pause") && message) return ` · ${message}`;
  return eta == null ? "" : ` · ${duration(eta)} left`;
}

/** The job that trains is not in the queue any more, but it is before the others. */
function waiting({ position, behind }) {
  if (position == null) return "It is this job's turn";
  const first = behind ? `“${behind}” trains now, ` : "";
  return `Waiting: ${first}${position + 1} ${position ? "jobs" : "job"} before it`;
}

function lossLine(facts) {
  const parts = facts.loss == null ? [] : [`loss ${facts.loss.toFixed(4)}`];
  if (facts.validation.length) parts.push(heldOut(facts));
  if (facts.skipped) parts.push(`${facts.skipped} ${facts.skipped === 1 ? "step" : "steps"} skipped`);
  if (facts.learning_rate < 0) parts.push(`erasing, learning rate −${-Number(facts.learning_rate.toPrecision(2))}`);
  return parts.join(" · ");
}

/** What is in models/loras, or what will be. */
function fileLine({ saved = [], saves = [], state }) {
  if (saved.length) return `Saved as ${saved.at(-1)}`;
  return saves.length && state !== "none" ? `Will be saved as ${saves.join(", ")}` : "";
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
