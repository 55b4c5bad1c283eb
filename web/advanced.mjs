// Folds a node's rare inputs away: LoRA Train's in the groups that its settings name, those of other nodes in one.
// @ts-check
import { app } from "../../scripts/app.js";
import { nodesOf } from "./canvas.mjs?v=2";
import { addStyle } from "./widget.mjs?v=2";

const FEW = 3;
const ONE = "Advanced inputs";
const HEIGHT = 20;
const NOWHERE = -1e5;
/** Milliseconds after which a value is noticed that a program has set: that tells nobody. */
const PAUSE = 500;
const ALWAYS_SHOWN = "Comfy.Node.AlwaysShowAdvancedWidgets";
const STYLE = `
.livelora-fold { display: flex; align-items: center; gap: 6px; width: 100%; min-height: 20px; padding: 0 8px; box-sizing: border-box;
  font: 12px sans-serif; color: var(--input-text); background: var(--comfy-input-bg); border: 1px solid transparent;
  border-radius: 4px; cursor: pointer; user-select: none; }
.dom-widget > .livelora-fold { width: calc(100% - 16px); margin: 0 8px; }
.lg-node .livelora-fold { background: var(--component-node-widget-background, var(--comfy-input-bg)); }
.livelora-fold::before { content: "▸"; color: var(--descrip-text); }
.livelora-fold[aria-expanded=true]::before { content: "▾"; }
.livelora-fold:hover, .livelora-fold:focus-visible { border-color: var(--p-primary-color, var(--primary-background, #4a9)); outline: none; }
`;

/** Node → what brings its headers up to date. */
const updates = new WeakMap();
setInterval(() => nodesOf().forEach((node) => updates.get(node)?.()), PAUSE);

/** Gives a node with more than a few rare inputs headers that show and hide them: the same on the canvas and in Nodes
 * 2.0. Which are open is saved with the workflow. */
export function addFolds(node) {
  const rare = (node.widgets ?? []).filter(isRare);
  if (rare.length <= FEW || app.extensionManager.setting.get(ALWAYS_SHOWN)) return;
  const inputs = rareInputs(node, () => update(true));
  const isOpen = (title) => node.properties.livelora_open?.includes(title) ?? false;
  /** Shows what is to be shown. If a person asked for it, the node's height follows. */
  const update = (asked) => {
    const flips = folds.flatMap((fold) => fold.update(inputs, isOpen(fold.title)));
    const flip = () => flips.forEach((input) => hide(input, !input.options.hidden));
    return asked && flips.length ? resize(node, flip) : flip();
  };
  const press = async ({ title, first }) => {
    const open = node.properties.livelora_open ?? [];
    node.properties.livelora_open = isOpen(title) ? open.filter((other) => other !== title) : [...open, title];
    const grown = await update(true);
    // A node that is folded from its far end would be out of sight.
    if (!first && node.pos[1] < app.canvas.ds.visible_area[1]) app.canvas.ds.offset[1] -= Math.min(grown, 0);
  };
  resize(node, inputs.all);
  const folds = groups(node, rare).map((group) => addFold(node, group, press));
  update(false);
  for (const event of ["onConfigure", "onConnectionsChange", "onInputAdded"]) after(node, event, () => update(false));
  updates.set(node, () => update(false));
  // Frontend 1.47 saves a hole for a widget without a value, and reads values as if there were none.
  after(node, "onSerialize", (saved) => { saved.widgets_values &&= Object.values(saved.widgets_values); });
}

function isRare(widget) {
  return widget.options?.advanced;
}

/** What the server tells about an input besides what ComfyUI asks for (nodes/recipe.py). */
function told(node, { name }) {
  const { required, optional } = node.constructor.nodeData.input;
  return (optional?.[name] ?? required?.[name])?.[1].livelora ?? {};
}

/** Gives values that an earlier version saved the names that they have today. */
export function renew(node) {
  for (const widget of node.widgets ?? []) {
    const today = told(node, widget).earlier?.[widget.value];
    if (today !== undefined) widget.value = today; // giving a dynamic combo its own value would reset what is in it
  }
}

/** A node's rare inputs. Those of LoRA Captioner's engines come and go. */
function rareInputs(node, onChange) {
  const defaults = new WeakMap();
  const changed = (input) => input.value !== defaults.get(input);
  const linked = ({ name }) => node.inputs.some((slot) => slot.link != null && slot.widget?.name === name);
  /** Whether it means something beside what is chosen now. */
  const meant = (input) => {
    const [name, values] = told(node, input).only_with ?? [];
    const choice = name && node.widgets.find((other) => other.name === name);
    return !choice || linked(choice) || (values.length ? values.includes(choice.value) : changed(choice));
  };
  return {
    all() {
      for (const widget of node.widgets.filter(isRare)) {
        widget.options.advanced = false; // Nodes 2.0 would fold it as well
        hide(widget, true);
        defaults.set(widget, widget.value);
        after(widget, "callback", onChange);
      }
      return node.widgets.filter((widget) => defaults.has(widget));
    },
    changed,
    /** A link is never hidden, and in an open fold no changed value. */
    shown: (input, open) => linked(input) || (open && (meant(input) || changed(input))),
  };
}

/** The groups of rare inputs in their order, each with its first one. Inputs that name no group are one, without. */
function groups(node, rare) {
  const found = [];
  for (const input of rare) {
    const { group = "" } = told(node, input);
    if (found.at(-1)?.title !== group) found.push({ title: group, first: input, names: [] });
    found.at(-1).names.push(input.name);
  }
  return found[0].title ? found : [{ title: ONE }];
}

/** A header above a group's first input, else under all. It has no value, and so no place among those that are saved. */
function addFold(node, group, press) {
  addStyle("livelora-fold-style", STYLE);
  const element = document.createElement("button");
  element.type = "button";
  element.className = "livelora-fold";
  element.addEventListener("click", () => press(group));
  const header = node.addDOMWidget(group.title, "LIVELORA_FOLD", element, {
    serialize: false, hideInPanel: true, margin: 2, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT,
  });
  header.serialize = false;
  header.computeSize = () => [0, HEIGHT];
  header.computeLayoutSize = undefined; // Nodes 2.0 would give it a share of the free room
  if (group.first) node.widgets.splice(node.widgets.indexOf(group.first), 0, node.widgets.pop());
  return {
    title: group.title,
    /** Says how many values are changed, and gives the inputs that are to be shown or hidden. */
    update(inputs, open) {
      const mine = inputs.all().filter(({ name }) => !group.names || group.names.includes(name));
      const changed = mine.filter(inputs.changed).length;
      const caption = changed ? `${group.title} (${changed} changed)` : group.title;
      const label = `${open ? "▾" : "▸"} ${caption}`;
      if (header.label !== label) {
        element.textContent = caption;
        element.ariaExpanded = String(open);
        header.label = label; // frontend 1.47 looks anew at what is hidden when a label changes
      }
      return mine.filter((input) => input.options.hidden === inputs.shown(input, open));
    },
  };
}

/** On the canvas and, by its options, in Nodes 2.0. Frontend 1.58 calls a linked widget hidden too, but not its options.
 * The socket of a hidden input still lights up when a link is dragged: out of sight, not under the node. */
function hide(widget, hidden) {
  widget.hidden = hidden;
  widget.options.hidden = hidden;
  if (hidden) widget.y = NOWHERE;
}

/** Makes a node taller by what a change shows, and gives by how much; what a person added to its height stays. */
export async function resize(node, change) {
  const [height, before] = [node.size[1], needed(node)];
  change();
  if (elementOf(node)) await new Promise(requestAnimationFrame); // Nodes 2.0 shows it by then
  const grown = needed(node) - before;
  node.setSize([node.size[0], height + grown]);
  node.setDirtyCanvas(true, true);
  return grown;
}

/** The height that a node's content takes. */
function needed(node) {
  const element = elementOf(node);
  if (!element) return node.computeSize()[1];
  const height = element.style.getPropertyValue("--node-height");
  element.style.setProperty("--node-height", "0px");
  const taken = element.offsetHeight;
  element.style.setProperty("--node-height", height);
  return taken;
}

/** A node's element in Nodes 2.0. */
function elementOf(node) {
  return document.querySelector(`.lg-node[data-node-id="${node.id}"]`);
}

function after(target, name, callback) {
  const original = target[name];
  target[name] = function (...values) {
    const answer = original?.apply(this, values);
    callback(...values);
    return answer;
  };
}
