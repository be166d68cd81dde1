// Makes small buttons, also ones that ask once more. In: a text and an action. Out: an element.
import { element } from "./nodes.js";

/** Return a button. `label` is its name if `text` is only a sign. */
export function button(text, action, { label = "", isOff = false } = {}) {
  const made = element("button", { type: "button", className: "quiet", textContent: text });
  if (label) made.ariaLabel = made.title = label;
  made.ariaDisabled = isOff ? "true" : null;
  made.addEventListener("click", (event) => isOff || action(event));
  return made;
}

/** Return a button that asks once more before it acts. `label` is its name if `text` is only a sign. */
export function confirmed(text, action, label = text) {
  const made = button(text, () => {
    if (made.textContent !== text) return action();
    made.textContent = "Really?";
    made.ariaLabel = `Really ${label[0].toLowerCase()}${label.slice(1)}?`;
  });
  const calm = () => {
    made.textContent = text;
    made.ariaLabel = label;
  };
  made.addEventListener("blur", calm);
  calm();
  return made;
}
