// Live LoRA, LoRA Sample Grid: the jobs that their input `job` offers.
// @ts-check
import { listJobs } from "./jobs.mjs?v=1";

const NEWEST = "newest";

/** Offers all jobs of now, the newest first. ComfyUI itself tells a page what an input offers only when it is loaded. */
export async function offerJobs(nodes) {
  const pickers = nodes.flatMap((node) => (node.widgets ?? []).filter((widget) => widget.name === "job"));
  if (!pickers.length) return;
  const names = (await listJobs()).map((facts) => facts.job).reverse();
  // The same list stays in place: Nodes 2.0 keeps a copy of `options`, and of it looks at the list alone.
  for (const { options } of pickers) options.values.splice(0, Infinity, NEWEST, ...names);
}
