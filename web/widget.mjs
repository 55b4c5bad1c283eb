// A widget that is a piece of page: it takes part in layout and in no workflow file.
// @ts-check

const STYLE = `
.livelora-box { display: flex; flex-direction: column; height: 100%; contain: size; overflow: hidden; border-radius: 6px;
  --wrong: light-dark(#b91c1c, #f87171); --advice: light-dark(#b45309, #fbbf24); }
.dark-theme .livelora-box { /* before frontend 1.58, which tells it by color-scheme */ --wrong: #f87171; --advice: #fbbf24; }
.livelora-box > * { background: var(--component-node-widget-background, var(--comfy-input-bg)); }
.livelora-box > .livelora:empty, .livelora-box > .livelora.text:not(:has(> div > div)) { background: none; }
.livelora-box > .problem { font: 12px sans-serif; color: var(--wrong); white-space: pre-wrap; overflow-wrap: anywhere;
  flex: 0 1 auto; overflow: auto; padding: 6px 8px; user-select: text; }
.livelora-box > .problem:not([hidden]) + .text, .livelora-box > .problem:not([hidden]) + .livelora .error { display: none; }
.livelora-box > .livelora { flex: 1 1000 0; min-height: 26px; }
.livelora { font: 12px sans-serif; color: var(--input-text); border-radius: 6px;
  padding: 6px 8px; box-sizing: border-box; overflow: auto; user-select: text; }
.livelora [role=progressbar] { height: 6px; border-radius: 3px; background: var(--border-color); overflow: hidden; margin: 4px 0; }
.livelora [role=progressbar] > div { height: 100%; width: 0; background: var(--p-primary-color, var(--primary-background, #4a9)); transition: width .2s; }
.livelora .room { height: 6px; border-radius: 3px; margin: 4px 0; }
.livelora[data-state=paused] [role=progressbar] > div { opacity: .4; }
.livelora .head { display: flex; gap: 4px; align-items: flex-start; }
.livelora .state { flex: 1; min-width: 0; padding-top: 3px; }
.livelora button { font: inherit; color: var(--input-text); background: var(--comfy-menu-bg); border: 1px solid var(--border-color);
  border-radius: 4px; cursor: pointer; }
.livelora .head > button { width: 24px; height: 20px; padding: 0; display: grid; place-items: center; }
.livelora .head > button i { font-size: 10px; }
.livelora-box [hidden] { display: none !important; }
.livelora button:hover, .livelora button:focus-visible { border-color: var(--p-primary-color, var(--primary-background, #4a9)); }
.livelora [role=menu] { margin: 0; padding: 4px; min-width: 150px; border: 1px solid var(--border-color); border-radius: 6px;
  background: var(--comfy-menu-bg); box-shadow: 0 4px 12px #0006; }
.livelora [role=menuitem] { display: block; width: 100%; padding: 5px 10px; text-align: left; border-color: transparent; }
.livelora summary { cursor: pointer; }
.livelora.steps { display: flex; flex-wrap: wrap; gap: 4px; align-items: baseline; }
.livelora .muted { color: var(--descrip-text); }
.livelora .error { color: var(--wrong); white-space: pre-wrap; }
.livelora .advice { color: var(--advice); white-space: pre-wrap; }
.livelora.text { position: relative; line-height: 14px; padding-bottom: 0; max-height: calc(6px + round(down, 100% - 6px, 14px)); } /* whole lines */
.livelora.text:has(> .unfold:not([hidden]))::before { content: ""; float: right; width: 80px; height: 14px; }
.livelora .unfold { position: absolute; top: 4px; right: 6px; font-size: 11px; line-height: 12px; }
.livelora.text > * { overflow-wrap: anywhere; white-space: pre-wrap; }
.livelora .round { display: grid; gap: 3px; margin-bottom: 6px; }
.livelora .round img { width: 100%; display: block; border-radius: 4px; image-rendering: auto; }
@media (prefers-reduced-motion: reduce) { .livelora [role=progressbar] > div { transition: none; } }
`;

/** Node → the element in its box that says what is wrong with the node. */
export const problemOf = new WeakMap();

/** Adds a style sheet to the page, once. */
export function addStyle(id, text) {
  if (document.getElementById(id)) return;
  const style = document.createElement("style");
  style.id = id;
  style.textContent = text;
  document.head.append(style);
}

/** Adds a box under a node's inputs and gives the element in it. The box is as tall as it is told, whatever is in it: a
 * run makes no node taller. */
export function addElement(node, name, height) {
  addStyle("livelora-style", STYLE);
  const box = document.createElement("div");
  box.className = "livelora-box";
  box.innerHTML = `<div class="problem" role="alert" hidden></div><div class="livelora"></div>`;
  box.style.minHeight = `${height}px`;
  box.tabIndex = 0;
  box.dataset.captureWheel = "true";
  const widget = node.addDOMWidget(name, `LIVELORA_${name.toUpperCase()}`, box, {
    serialize: false,
    hideInPanel: true, // the panel at the right would take the box's width
    getMinHeight: () => parseFloat(box.style.minHeight),
  });
  widget.serialize = false;
  const [problem, element] = box.children;
  problemOf.set(node, problem);
  return element;
}
