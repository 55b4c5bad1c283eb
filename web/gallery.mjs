// LoRA Sample Preview: the pictures of each round, newest on top.
// @ts-check
import { getJob, showSample } from "./jobs.mjs?v=1";
import { addElement } from "./widget.mjs?v=1";

export function addGallery(node) {
  const element = addElement(node, "gallery", 160);
  const rounds = new Map();
  const live = {
    /** How many pictures were told of so far. */
    told: 0,
    clear() {
      rounds.clear();
      for (const image of element.querySelectorAll("img")) URL.revokeObjectURL(image.src);
      element.innerHTML = `<span class="muted">Pictures appear here while the LoRA trains.</span>`;
    },
    add({ job, step, file, prompt }) {
      live.told += 1;
      if (!rounds.size) element.replaceChildren();
      if (!rounds.has(step)) rounds.set(step, addRound(element, step));
      const round = rounds.get(step);
      if ([...round.children].some((image) => image.dataset.file === file)) return;
      const image = document.createElement("img");
      showSample(image, job, file);
      image.dataset.file = file;
      image.alt = prompt ? `Step ${step}: ${prompt}` : `Step ${step}`;
      image.title = image.alt;
      round.append(image);
      round.style.gridTemplateColumns = `repeat(${Math.min(4, round.childElementCount)}, 1fr)`;
    },
  };
  node.livelora = live;
  live.clear();
}

function addRound(element, step) {
  const title = document.createElement("div");
  title.className = "muted";
  title.textContent = step ? `Step ${step}` : "Before training";
  const round = document.createElement("div");
  round.className = "round";
  element.prepend(title, round);
  return round;
}

/** Shows all pictures of a job anew, none if there is no such job: file names read step_000100_00.png. */
export async function showSamples(node, job) {
  const live = node.livelora;
  let facts, told;
  do { // an answer that was on its way when a picture was drawn does not know that one
    told = live.told;
    facts = await getJob(job);
  } while (live.told !== told);
  if (node.properties.livelora_job !== job) return; // tied to another one meanwhile, which is asked for too
  live.clear();
  for (const file of facts?.samples ?? []) live.add({ job, step: Number(file.split("_")[1]), file });
}
