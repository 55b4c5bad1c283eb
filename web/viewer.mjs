// A sample picture, large: by keys from prompt to prompt and from step to step, and laid against the one from before
// training.
// @ts-check
import { showSample } from "./jobs.mjs?v=2";
import { addStyle } from "./widget.mjs?v=2";

/** What each key does, beside Escape. */
const MOVES = {
  ArrowLeft: (viewer) => viewer.moveStep(-1),
  ArrowRight: (viewer) => viewer.moveStep(1),
  ArrowUp: (viewer) => viewer.movePrompt(-1),
  ArrowDown: (viewer) => viewer.movePrompt(1),
  Home: (viewer) => viewer.moveStep(-Infinity),
  End: (viewer) => viewer.moveStep(Infinity),
};
/** ComfyUI listens to these wherever they happen: Delete would remove a node behind the dialog, a paste would add some. */
const KEPT = ["keydown", "keyup", "copy", "cut", "paste"];
const PARTS = `
  <div class="bar">
    <span class="prompt"></span>
    <button type="button" class="previous" title="Previous prompt (↑)" aria-label="Previous prompt"
      ><i class="pi pi-chevron-up" aria-hidden="true"></i></button>
    <button type="button" class="next" title="Next prompt (↓)" aria-label="Next prompt"
      ><i class="pi pi-chevron-down" aria-hidden="true"></i></button>
    <button type="button" class="close" title="Close (Escape)" aria-label="Close"
      ><i class="pi pi-times" aria-hidden="true"></i></button>
  </div>
  <div class="stage">
    <img class="now"><img class="before">
    <input type="range" class="wipe" min="0" max="100" step="any" aria-label="How much of the picture from before training is shown">
    <span class="names" aria-hidden="true"><span>Before training</span><span></span></span>
  </div>
  <div class="bar">
    <input type="range" class="steps" min="0" step="1" aria-label="Step">
    <output></output>
    <button type="button" class="compare" aria-pressed="false">Compare with before training</button>
  </div>`;
const STYLE = `
.livelora-viewer { font: 13px sans-serif; color: var(--input-text); background: var(--comfy-menu-bg); padding: 10px; margin: auto;
  border: 1px solid var(--border-color); border-radius: 8px; box-shadow: none; max-width: 96vw; max-height: 96vh; overflow: hidden; }
.livelora-viewer::backdrop { background: #000c; }
.livelora-viewer .bar { display: flex; align-items: center; gap: 8px; min-height: 28px; min-width: min(90vw, 480px); }
.livelora-viewer .prompt { flex: 1; width: 0; max-height: 3em; overflow: auto; user-select: text; }
.livelora-viewer .steps { flex: 1; min-width: 60px; }
.livelora-viewer output { min-width: 9em; font-variant-numeric: tabular-nums; }
.livelora-viewer button { font: inherit; color: inherit; background: var(--comfy-input-bg); border: 1px solid var(--border-color);
  border-radius: 4px; padding: 4px 8px; cursor: pointer; }
.livelora-viewer button:hover, .livelora-viewer button[aria-pressed=true] { border-color: var(--primary-background, #4a9); }
.livelora-viewer :focus-visible { outline: 2px solid var(--primary-background, #4a9); outline-offset: 1px; }
.livelora-viewer [hidden] { display: none !important; }
.livelora-viewer .stage { --ratio: 1; --wipe: 50%; position: relative; aspect-ratio: var(--ratio); margin: 8px auto;
  width: min(94vw, (96vh - 120px) * var(--ratio)); }
.livelora-viewer .stage > * { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; }
.livelora-viewer img { object-fit: contain; }
.livelora-viewer .before { clip-path: inset(0 calc(100% - var(--wipe)) 0 0); }
.livelora-viewer .wipe { appearance: none; cursor: ew-resize; touch-action: none; border-radius: 0;
  background: linear-gradient(90deg, #000 33%, #fff 33% 66%, #000 66%) var(--wipe) / 3px no-repeat; }
.livelora-viewer .wipe::-webkit-slider-runnable-track { height: 100%; }
.livelora-viewer .wipe::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.livelora-viewer .wipe::-moz-range-thumb { opacity: 0; width: 1px; height: 100%; border: 0; }
.livelora-viewer .names { display: flex; justify-content: space-between; align-items: flex-end; pointer-events: none; }
.livelora-viewer .names span { background: #000a; color: #fff; padding: 2px 6px; margin: 4px; border-radius: 4px; }
@media (prefers-reduced-motion: no-preference) {
  .livelora-viewer { animation: livelora-viewer 0.12s; }
  @keyframes livelora-viewer { from { opacity: 0; transform: scale(0.97); } }
}
`;

/** Opens one of the pictures, each with its `job`, `step`, `file`, `index` of the prompt and, where it is known, `prompt`.
 * Gives what to call when there are more of them. `onClose` is called when it is closed. */
export function openViewer(pictures, picture, onClose) {
  addStyle("livelora-viewer", STYLE);
  const dialog = document.createElement("dialog");
  dialog.className = "livelora-viewer";
  dialog.setAttribute("aria-label", "Sample picture");
  dialog.setAttribute("closedby", "any");
  dialog.innerHTML = PARTS;
  const viewer = makeViewer(dialog, pictures, picture);
  listen(dialog, viewer);
  dialog.addEventListener("close", () => {
    for (const image of dialog.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    dialog.remove();
    onClose();
  });
  document.body.append(dialog);
  viewer.show();
  dialog.showModal();
  dialog.querySelector(".steps").focus();
  return viewer.show;
}

function makeViewer(dialog, pictures, at) {
  const ofPrompt = (index) => pictures.filter((picture) => picture.index === index).sort((a, b) => a.step - b.step);
  const placeIn = (same) => same.findIndex(({ file }) => file === at.file);
  const go = (picture) => {
    at = picture ?? at;
    viewer.show();
  };
  const viewer = {
    show() {
      const same = ofPrompt(at.index);
      const place = placeIn(same);
      if (place < 0) return; // the pictures are gone, or are just listed anew
      showPicture(dialog, at, same[0]);
      showSteps(dialog, same, place);
      showPrompt(dialog, at, indexesOf(pictures));
    },
    /** To one of the pictures of the same prompt, by its place among them. */
    goTo(place) {
      const same = ofPrompt(at.index);
      go(same[Math.max(0, Math.min(same.length - 1, place))]);
    },
    moveStep(by) {
      viewer.goTo(placeIn(ofPrompt(at.index)) + by);
    },
    /** To another prompt, at the same step or the last one before it. */
    movePrompt(by) {
      const indexes = indexesOf(pictures);
      const there = ofPrompt(indexes.at((indexes.indexOf(at.index) + by) % indexes.length));
      go(there.findLast(({ step }) => step <= at.step) ?? there[0]);
    },
    compare() {
      const button = dialog.querySelector(".compare");
      button.ariaPressed = String(button.ariaPressed !== "true");
      viewer.show();
    },
  };
  return viewer;
}

/** Which prompts there are pictures of. */
function indexesOf(pictures) {
  return [...new Set(pictures.map(({ index }) => index))].sort((a, b) => a - b);
}

/** The picture and, if that is wished and there is one, the one from before training over it. */
function showPicture(dialog, { job, step, file, prompt }, first) {
  const [now, before] = dialog.querySelectorAll("img");
  const button = dialog.querySelector(".compare");
  button.hidden = first.step !== 0 || step === 0;
  const comparing = !button.hidden && button.ariaPressed === "true";
  for (const part of [before, dialog.querySelector(".wipe"), dialog.querySelector(".names")]) part.hidden = !comparing;
  load(now, job, file);
  if (comparing) load(before, job, first.file);
  now.alt = [nameOf(step), prompt].filter(Boolean).join(": ");
  before.alt = nameOf(0);
}

function load(image, job, file) {
  if (image.dataset.file !== file) showSample(image, job, file);
}

function showSteps(dialog, same, place) {
  const slider = dialog.querySelector(".steps");
  const name = nameOf(same[place].step);
  slider.max = same.length - 1;
  slider.value = place;
  slider.ariaValueText = name;
  dialog.querySelector(".names").lastElementChild.textContent = name;
  dialog.querySelector("output").textContent = `${name} (${place + 1} of ${same.length})`;
}

function showPrompt(dialog, { index, prompt }, indexes) {
  const which = `Prompt ${indexes.indexOf(index) + 1} of ${indexes.length}`;
  dialog.querySelector(".prompt").textContent = prompt ? `${which}: ${prompt}` : which;
  for (const name of ["previous", "next"]) dialog.querySelector(`.${name}`).hidden = indexes.length < 2;
}

function nameOf(step) {
  return step ? `Step ${step}` : "Before training";
}

function listen(dialog, viewer) {
  const part = (name) => dialog.querySelector(`.${name}`);
  for (const kind of KEPT) dialog.addEventListener(kind, (event) => event.stopPropagation());
  dialog.addEventListener("keydown", (event) => {
    const move = event.target !== part("wipe") && MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    move(viewer);
  });
  part("close").addEventListener("click", () => dialog.close());
  part("previous").addEventListener("click", () => viewer.movePrompt(-1));
  part("next").addEventListener("click", () => viewer.movePrompt(1));
  part("compare").addEventListener("click", () => viewer.compare());
  part("steps").addEventListener("input", ({ target }) => viewer.goTo(Number(target.value)));
  part("wipe").addEventListener("input", ({ target }) => part("stage").style.setProperty("--wipe", `${target.value}%`));
  part("wipe").addEventListener("pointerup", () => part("steps").focus()); // else the arrows would move the divider
  part("now").addEventListener("load", ({ target: { naturalWidth, naturalHeight } }) => {
    part("stage").style.setProperty("--ratio", naturalWidth / naturalHeight);
  });
}
