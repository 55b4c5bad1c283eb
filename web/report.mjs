// Nodes that tell what they found or did, as text: warnings first, and of the rest two lines until more is asked for.
// @ts-check
import { resize } from "./advanced.mjs?v=2";
import { addElement } from "./widget.mjs?v=2";

const TALLEST = 320;
const PARTS = `<div class="advice"></div><div class="start"></div><div class="rest" hidden></div>
  <button type="button" class="unfold" aria-expanded="false" hidden></button>`;

/** Adds a report of so many lines besides its warnings, as long as no more are asked for, in a box of that height. */
export function addReport(node, lines = 2, height = 62) {
  const element = addElement(node, "report", height);
  element.classList.add("text");
  element.innerHTML = PARTS;
  const [advice, start, rest, button] = element.children;
  const label = () => {
    const count = rest.childElementCount;
    button.textContent = rest.hidden ? `${count} more ${count === 1 ? "line" : "lines"}` : "less";
    button.ariaExpanded = String(!rest.hidden);
  };
  button.addEventListener("click", () => {
    rest.hidden = !rest.hidden;
    label();
    const wanted = rest.hidden ? height : Math.min(element.scrollHeight, TALLEST);
    resize(node, () => { element.parentElement.style.minHeight = `${wanted}px`; });
  });
  node.livelora = {
    ...node.livelora,
    /** Shows what a run puts out: `text`, and which of its lines are `warnings`. */
    report({ text = [], warnings = [] }) {
      const first = linesOf(warnings);
      const others = linesOf(text).filter((line) => !first.includes(line));
      fill(advice, first);
      fill(start, others.slice(0, lines));
      fill(rest, others.slice(lines));
      button.hidden = !rest.childElementCount;
      label();
    },
  };
}

function linesOf(texts) {
  return texts.join("\n").split("\n").filter(Boolean);
}

/** A line each is an element of its own: they never run together. */
function fill(parent, lines) {
  parent.replaceChildren(...lines.map((line) => {
    const element = document.createElement("div");
    element.textContent = line;
    return element;
  }));
}
