// The list of conversations beside the transcript: open, search, delete. In: what is kept in this browser. Out:
// the list; calls of `open(id)` and `remove(id)`. Not known here: turns, the server.
import { element } from "./nodes.js";
import { listConversations, search } from "./store.js";
import { confirmed } from "./buttons.js";

const [list, none, field, toggle] = ["conversations", "none", "search", "show-list"].map((id) => document.getElementById(id));
let actions = null;
let current = null;
let latest = 0; // the number of the latest drawing: an older one that ends later is not shown

/** Connect the list with what it does. */
export function startSidebar(given) {
  actions = given;
  field.addEventListener("input", () => drawSidebar());
  toggle.addEventListener("click", () => setOpen(toggle.ariaExpanded !== "true"));
}

/** Show or hide the list on a narrow screen. */
export function setOpen(isOpen) {
  toggle.ariaExpanded = String(isOpen);
  document.body.classList.toggle("listing", isOpen);
  if (isOpen) field.focus();
}

/** Show the conversations that match the search; `id` is the open one. */
export async function drawSidebar(id = current) {
  current = id;
  const number = (latest += 1);
  const wanted = field.value.trim();
  const [all, found] = await Promise.all([listConversations(), wanted ? search(wanted) : null]);
  if (number !== latest) return;
  const shown = all.filter((meta) => found === null || found.has(meta.id));
  list.replaceChildren(...shown.map(entry));
  none.hidden = shown.length > 0 || !wanted;
}

function entry(meta) {
  const title = meta.title || "New conversation";
  const link = element("a", { href: `#${meta.id}`, textContent: title, dir: "auto" });
  if (meta.id === current) link.ariaCurrent = "true";
  link.addEventListener("click", () => setOpen(false));
  return element("li", {}, link, confirmed("×", () => actions.remove(meta.id), `Delete ${title}`));
}
