// LoRA Sample Preview: the pictures of each round, newest on top.
// @ts-check
import { getJob, sampleUrl } from "./jobs.mjs?v=1";
import { addElement } from "./widget.mjs?v=1";

export function addGallery(node) {
  const element = addElement(node, "gallery", 160);
  const rounds = new Map();
  node.livelora = {
    clear() {
      rounds.clear();
      element.innerHTML = `<span class="muted">Pictures appear here while the LoRA trains.</span>`;
    },
    add({ job, step, file, prompt }) {
      if (!rounds.size) element.replaceChildren();
      if (!rounds.has(step)) rounds.set(step, addRound(element, step));
      const round = rounds.get(step);
      if ([...round.children].some((image) => image.dataset.file === file)) return;
      const image = document.createElement("img");
      image.src = sampleUrl(job, file);
      image.dataset.file = file;
      image.alt = prompt ? `Step ${step}: ${prompt}` : `Step ${step}`;
      image.title = image.alt;
      round.append(image);
      round.style.gridTemplateColumns = `repeat(${Math.min(4, round.childElementCount)}, 1fr)`;
    },
  };
  node.livelora.clear();
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
  const facts = await getJob(job);
  node.livelora.clear();
  for (const file of facts?.samples ?? []) node.livelora.add({ job, step: Number(file.split("_")[1]), file });
}
