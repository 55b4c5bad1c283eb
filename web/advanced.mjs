// Folds a node's rare inputs away on the classic canvas, as Nodes 2.0 does by itself.
// @ts-check
import { app } from "../../scripts/app.js";

const FEW = 3;
const NOWHERE = -1e5;
const ALWAYS_SHOWN = "Comfy.Node.AlwaysShowAdvancedWidgets";

/** Gives a node with more than a few advanced inputs a button that shows them. `showAdvanced` is Nodes 2.0's own state:
 * it is saved with the workflow. The button must follow all inputs, for their values are saved by position. */
export function addFold(node) {
  const defaults = new Map();
  const rare = () => { // LoRA Captioner's engines have inputs of their own, which come and go
    const found = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    for (const widget of found) if (!defaults.has(widget)) defaults.set(widget, widget.value);
    return found;
  };
  if (rare().length <= FEW || app.extensionManager.setting.get(ALWAYS_SHOWN)) return;
  const fold = () => {
    const linked = new Set(node.inputs.filter((slot) => slot.link != null).map((slot) => slot.widget?.name));
    for (const widget of rare()) hide(widget, !node.showAdvanced && !linked.has(widget.name));
  };
  const toggle = () => {
    node.showAdvanced = rare().some((widget) => widget.hidden);
    const grown = resize(node, fold);
    // Else a node that is folded from its far end would be out of sight.
    if (node.pos[1] < app.canvas.ds.visible_area[1]) app.canvas.ds.offset[1] -= Math.min(grown, 0);
  };
  const button = node.addWidget("button", "advanced", null, toggle, { serialize: false, canvasOnly: true });
  button.serialize = false;
  // Read anew each time it is drawn: the panel on the right changes values of inputs that are hidden here.
  Object.defineProperty(button, "label", { get: () => caption(rare(), defaults), set() {} });
  after(node, "onConfigure", fold);
  after(node, "onConnectionsChange", fold);
  after(node, "onDrawForeground", fold); // showAdvanced may have changed in Nodes 2.0, which draws no canvas
  resize(node, fold);
}

/** The socket of a hidden input still lights up when a link is dragged: out of sight, not under the node. */
function hide(widget, hidden) {
  widget.hidden = hidden;
  if (hidden) widget.y = NOWHERE;
}

/** Makes a node taller by what a change shows, and gives by how much; what a person added to its height stays. */
export function resize(node, change) {
  const before = node.computeSize()[1];
  change();
  const grown = node.computeSize()[1] - before;
  node.setSize([node.size[0], node.size[1] + grown]);
  node.setDirtyCanvas(true, true);
  return grown;
}

function caption(rare, defaults) {
  const hidden = rare.filter((widget) => widget.hidden);
  const changed = hidden.filter((widget) => widget.value !== defaults.get(widget)).length;
  if (!hidden.length) return "Hide advanced inputs";
  return `Show ${hidden.length} advanced inputs${changed ? ` (${changed} changed)` : ""}`;
}

function after(node, name, callback) {
  const original = node[name];
  node[name] = function () {
    const answer = original?.apply(this, arguments);
    callback();
    return answer;
  };
}
