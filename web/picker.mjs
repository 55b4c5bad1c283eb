// Live LoRA, LoRA Sample Grid: the jobs that their input `job` offers.
// @ts-check
import { listJobs } from "./jobs.mjs?v=1";

const NEWEST = "newest";
/** Picker → the last question asked for it. Answers may come in another order. */
const questions = new WeakMap();
let asked = 0;

/** Offers all jobs of now, the newest first. ComfyUI itself tells a page what an input offers only when it is loaded. */
export async function offerJobs(nodes) {
  const pickers = nodes.flatMap((node) => (node.widgets ?? []).filter((widget) => widget.name === "job"));
  if (!pickers.length) return;
  const mine = ++asked;
  for (const picker of pickers) questions.set(picker, mine);
  const names = (await listJobs()).map((facts) => facts.job).reverse();
  // The same list stays in place: Nodes 2.0 keeps a copy of `options`, and of it looks at the list alone.
  const last = pickers.filter((picker) => questions.get(picker) === mine);
  for (const { options } of last) options.values.splice(0, Infinity, NEWEST, ...names);
}
