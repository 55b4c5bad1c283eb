// LoRA Sample Preview: the pictures from before training, and below them those of each round, newest first.
// @ts-check
import { getJob, showSample } from "./jobs.mjs?v=2";
import { openViewer } from "./viewer.mjs?v=2";
import { addElement, addStyle } from "./widget.mjs?v=2";

/** Pictures in a row. Rounds of a single one stand beside each other. */
const COLUMNS = 4;
const STYLE = `
.livelora.gallery { position: relative; container-type: size; }
.livelora .rounds { position: absolute; inset: 0; padding: 6px 8px; overflow: auto; display: grid; gap: 0 3px;
  grid-template-columns: repeat(${COLUMNS}, 1fr); align-content: start; }
.livelora .rounds > span { grid-column: 1 / -1; }
.livelora .round img { max-height: max(64px, 100cqh - 24px); object-fit: contain; }
.livelora .round button { padding: 0; border-color: transparent; background: none; cursor: zoom-in; }
`;

export function addGallery(node) {
  addStyle("livelora-gallery", STYLE);
  const element = addElement(node, "gallery", 160);
  element.classList.add("gallery");
  const list = document.createElement("div");
  list.className = "rounds"; // scrolls in the room that the node gives it, and asks for none
  element.append(list);
  const rounds = new Map();
  /** Every picture, for the viewer: it looks at what comes while it is open. */
  const pictures = [];
  let tellViewer = () => {};
  const live = {
    /** How many pictures were told of so far. */
    told: 0,
    clear() {
      rounds.clear();
      pictures.length = 0;
      for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
      list.innerHTML = `<span class="muted">Pictures appear here while the LoRA trains. Press one to see it large.</span>`;
    },
    add({ job, step, file, prompt }) {
      live.told += 1;
      if (pictures.some((picture) => picture.file === file)) return;
      if (!rounds.size) list.replaceChildren();
      if (!rounds.has(step)) rounds.set(step, addRound(list, step, rounds.get(0)));
      const picture = { job, step, file, prompt, index: readName(file).index };
      pictures.push(picture);
      const round = rounds.get(step);
      round.append(makeButton(picture, () => {
        tellViewer = openViewer(pictures, picture, () => focusOn(list, file));
      }));
      const wide = Math.min(COLUMNS, round.childElementCount);
      round.style.gridTemplateColumns = `repeat(${wide}, 1fr)`;
      round.parentElement.style.gridColumn = `span ${wide > 1 ? COLUMNS : 1}`;
      tellViewer();
    },
  };
  node.livelora = live;
  live.clear();
}

/** A round goes on top, but below the one from before training. */
function addRound(list, step, before) {
  const title = document.createElement("div");
  title.className = "muted";
  title.textContent = step ? `Step ${step}` : "Before training";
  const round = document.createElement("div");
  round.className = "round";
  const part = document.createElement("div");
  part.append(title, round);
  if (before) before.parentElement.after(part);
  else list.prepend(part);
  return round;
}

/** A picture that opens large when it is pressed. */
function makeButton({ job, step, file, prompt }, onPress) {
  const button = document.createElement("button");
  button.type = "button";
  const image = document.createElement("img");
  showSample(image, job, file);
  image.alt = prompt ? `Step ${step}: ${prompt}` : `Step ${step}`;
  image.title = image.alt;
  button.append(image);
  button.addEventListener("click", onPress);
  return button;
}

/** The focus goes back to the picture that was pressed, or the one that has come in its place. */
function focusOn(list, file) {
  list.querySelector(`[data-file="${file}"]`)?.parentElement.focus({ preventScroll: true });
}

/** File names read step_000100_00.png: the step, and which prompt. */
function readName(file) {
  const [, step, index] = file.split("_").map((part) => parseInt(part));
  return { step, index };
}

/** Shows all pictures of a job anew, none if there is no such job. */
export async function showSamples(node, job) {
  const live = node.livelora;
  let facts, told;
  do { // an answer that was on its way when a picture was drawn does not know that one
    told = live.told;
    facts = await getJob(job);
  } while (live.told !== told);
  if (node.properties.livelora_job !== job) return; // tied to another one meanwhile, which is asked for too
  live.clear();
  for (const file of facts?.samples ?? []) live.add({ job, step: readName(file).step, file });
}
