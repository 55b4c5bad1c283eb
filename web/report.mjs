// Nodes that tell what they found or did, as text.
// @ts-check
import { addElement } from "./widget.mjs?v=1";

export function addReport(node) {
  const element = addElement(node, "report", 60);
  element.classList.add("text");
  const onExecuted = node.onExecuted;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    element.textContent = output?.text?.join("\n") ?? "";
  };
}
