// A widget that is a piece of page: it takes part in layout and in no workflow file.
// @ts-check

const STYLE = `
.livelora { font: 12px sans-serif; color: var(--input-text); border-radius: 6px;
  background: var(--component-node-widget-background, var(--comfy-input-bg));
  padding: 6px 8px; box-sizing: border-box; overflow: auto; user-select: text; }
.livelora [role=progressbar] { height: 6px; border-radius: 3px; background: var(--border-color); overflow: hidden; margin: 4px 0; }
.livelora [role=progressbar] > div { height: 100%; width: 0; background: var(--p-primary-color, #4a9); transition: width .2s; }
.livelora[data-state=paused] [role=progressbar] > div { opacity: .4; }
.livelora:empty { background: none; }
.livelora .head { display: flex; gap: 4px; align-items: flex-start; }
.livelora .state { flex: 1; min-width: 0; padding-top: 3px; }
.livelora button { font: inherit; color: var(--input-text); background: var(--comfy-menu-bg); border: 1px solid var(--border-color);
  border-radius: 4px; cursor: pointer; }
.livelora .head > button { width: 24px; height: 20px; padding: 0; display: grid; place-items: center; }
.livelora .head > button i { font-size: 10px; }
.livelora [hidden] { display: none !important; }
.livelora button:hover, .livelora button:focus-visible { border-color: var(--p-primary-color, #4a9); }
.livelora [role=menu] { margin: 0; padding: 4px; min-width: 150px; border: 1px solid var(--border-color); border-radius: 6px;
  background: var(--comfy-menu-bg); box-shadow: 0 4px 12px #0006; }
.livelora [role=menuitem] { display: block; width: 100%; padding: 5px 10px; text-align: left; border-color: transparent; }
.livelora.steps { display: flex; flex-wrap: wrap; gap: 4px; align-items: baseline; }
.livelora .muted { color: var(--descrip-text); }
.livelora .error { color: var(--error-text); white-space: pre-wrap; }
.livelora.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.livelora .round { display: grid; gap: 3px; margin-bottom: 6px; }
.livelora .round img { width: 100%; display: block; border-radius: 4px; image-rendering: auto; }
@media (prefers-reduced-motion: reduce) { .livelora [role=progressbar] > div { transition: none; } }
`;

/** Adds an element under a node's inputs and gives it. */
export function addElement(node, name, height) {
  if (!document.getElementById("livelora-style")) {
    const style = document.createElement("style");
    style.id = "livelora-style";
    style.textContent = STYLE;
    document.head.append(style);
  }
  const element = document.createElement("div");
  element.className = "livelora";
  element.style.minHeight = `${height}px`;
  element.tabIndex = 0;
  element.dataset.captureWheel = "true";
  const widget = node.addDOMWidget(name, `LIVELORA_${name.toUpperCase()}`, element, {
    serialize: false,
    getMinHeight: () => height,
  });
  widget.serialize = false;
  return element;
}
