// A button with a menu, in the page's top layer: what clips or scales a node does neither to its menu.
// @ts-check

const GAP = 2;
/** Room that a menu needs, in pixels. */
const ROOM = 200;
/** Where each key goes from item `at` of `count`; -1 is the last. */
const MOVES = {
  ArrowDown: (at, count) => (at + 1) % count,
  ArrowUp: (at) => at - 1,
  Home: () => 0,
  End: () => -1,
};

/** Makes `menu`, a popover with menu items in it, open from `button`, by mouse and by keyboard. A press elsewhere closes
 * it: that is what popovers do. */
export function tieMenu(button, menu) {
  const items = () => [...menu.querySelectorAll("[role=menuitem]")].filter((item) => !item.hidden);
  const focus = (item) => item?.focus({ preventScroll: true });
  const close = () => {
    menu.hidePopover();
    focus(button);
  };
  button.popoverTargetElement = menu;
  menu.addEventListener("beforetoggle", (event) => {
    button.setAttribute("aria-expanded", event.newState === "open");
    place(menu, button.getBoundingClientRect());
  });
  menu.addEventListener("toggle", (event) => event.newState === "open" && focus(items()[0]));
  menu.addEventListener("focusout", ({ relatedTarget: next }) => {
    if (next !== button && !menu.contains(next)) menu.hidePopover();
  });
  menu.addEventListener("click", (event) => event.target.closest("[role=menuitem]") && close());
  menu.addEventListener("keydown", (event) => {
    event.stopPropagation(); // ComfyUI has shortcuts on single keys, Escape and Delete among them
    const move = MOVES[event.key];
    if (event.key === "Escape") close();
    else if (move) focus(items().at(move(items().indexOf(event.target), items().length)));
    else return;
    event.preventDefault();
  });
}

/** Under the button, or above it if there is no room; their right edges meet. */
function place(menu, button) {
  const below = button.bottom + ROOM < innerHeight;
  menu.style.inset = "auto";
  menu.style.right = `${innerWidth - button.right}px`;
  menu.style[below ? "top" : "bottom"] = `${below ? button.bottom + GAP : innerHeight - button.top + GAP}px`;
}
