// What is wrong with a node, as a sentence in red in the node's own box.
// @ts-check
import { resize } from "./advanced.mjs?v=2";
import { findNode, nodesOf } from "./canvas.mjs?v=2";
import { addElement, problemOf } from "./widget.mjs?v=2";

/** The box of a node that has no other one. It is there as long as the problem is. */
const OWN = "problem";
const HEIGHT = 76;
/** Node → how tall it was without that box. */
const heights = new WeakMap();

/** Shows these problems, { id, type, sentence }, and no others. */
export function showProblems(problems) {
  for (const node of nodesOf()) {
    const mine = problems.filter(({ id, type }) => type === node.comfyClass && findNode(id) === node);
    show(node, [...new Set(mine.map(({ sentence }) => sentence))].join("\n"));  // ComfyUI may tell one at two inputs
  }
}

function show(node, sentence) {
  const own = node.widgets?.find(({ name }) => name === OWN);
  if (sentence && !problemOf.has(node)) {
    heights.set(node, node.size[1]);
    resize(node, () => addElement(node, OWN, HEIGHT));
  }
  const place = problemOf.get(node);
  if (place) Object.assign(place, { textContent: sentence, title: sentence, hidden: !sentence });
  if (!sentence && own) {
    problemOf.delete(node);
    node.removeWidget(own);
    node.setSize([node.size[0], heights.get(node)]);
  }
}
