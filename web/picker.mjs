// Live LoRA, LoRA Sample Grid: the jobs that their input `job` offers, as a person knows them.
// @ts-check
import { listJobs } from "./jobs.mjs?v=2";

const NEWEST = "newest";
const SEPARATOR = " · ";
/** Of a node, so that its picker shows a whole label on the canvas. */
const WIDTH = 360;
/** Id → the facts of every job that is known, the oldest first. */
const known = new Map();
/** Picker → the last question asked for it. Answers may come in another order. */
const questions = new WeakMap();
let asked = 0;

/** Makes a node's picker say which training an id is. Its value stays the id. Nodes 2.0 keeps a copy of `options`, so
 * this comes before it looks. */
export function addPicker(node) {
  for (const { options } of pickersOf([node])) options.getOptionLabel = label;
  node.setSize([Math.max(WIDTH, node.size[0]), node.size[1]]);
}

/** Offers all jobs of now, the newest first. ComfyUI itself tells a page what an input offers only when it is loaded. */
export async function offerJobs(nodes) {
  const pickers = pickersOf(nodes);
  if (!pickers.length) return;
  const mine = ++asked;
  for (const picker of pickers) questions.set(picker, mine);
  const jobs = await listJobs();
  if (mine === asked) {
    known.clear();
    for (const facts of jobs) known.set(facts.job, facts);
  }
  const names = jobs.map((facts) => facts.job).reverse();
  // The same list stays in place: Nodes 2.0 looks at the list alone.
  const last = pickers.filter((picker) => questions.get(picker) === mine);
  for (const { options } of last) options.values.splice(0, Infinity, NEWEST, ...names);
}

/** Remembers what was told of a job that is on the list: others may be of other users. */
export function noteJob(facts) {
  if (known.has(facts.job)) known.set(facts.job, facts);
}

/** The job that a picker's value means; undefined if none is known. */
export function jobOf(value) {
  return value === NEWEST ? [...known.keys()].at(-1) : value;
}

function pickersOf(nodes) {
  return nodes.flatMap((node) => (node.widgets ?? []).filter((widget) => widget.name === "job"));
}

function label(value) {
  const facts = known.get(value);
  if (!facts) return value ?? "";
  return [facts.name, when(new Date(facts.created)), `step ${facts.step} of ${facts.steps}`, facts.state].join(SEPARATOR);
}

/** 08:44 of today; before, with its day. */
function when(time) {
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  if (time.toDateString() === new Date().toDateString()) return clock;
  return `${time.toLocaleDateString([], { day: "numeric", month: "short" })} ${clock}`;
}
