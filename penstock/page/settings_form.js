// The system prompt and the sampling of a conversation, in a dialog. In: a conversation's own fields, as plain
// objects. Out: the same objects, changed. An empty field means the model's own value.

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const at = (id) => document.getElementById(id);
const dialog = at("settings");

/** Let the user change `meta`; call `changed` afterwards. */
export function editSettings(meta, changed) {
  at("system").value = meta.system;
  for (const name of NUMBERS) at(name).value = meta.sampling[name] ?? "";
  dialog.onclose = () => {
    meta.system = at("system").value;
    meta.sampling = {};
    for (const name of NUMBERS) {
      const value = at(name).valueAsNumber;
      if (Number.isFinite(value)) meta.sampling[name] = value;
    }
    unmark();
    changed();
  };
  dialog.showModal();
}

/** Show at the fields which values the server refused: `[{field, message}]`. Return whether there are any. */
export function markRefused(meta, fields, changed) {
  const known = fields.filter(({ field }) => NUMBERS.includes(field));
  if (known.length === 0) return false;
  editSettings(meta, changed);
  for (const { field, message } of known) {
    const input = at(field);
    const hint = input.nextElementSibling;
    hint.dataset.bounds ??= hint.textContent;
    hint.textContent = message.replace(`${field}: `, "");
    input.setAttribute("aria-invalid", "true");
  }
  at(known[0].field).focus();
  return true;
}

function unmark() {
  for (const input of dialog.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.nextElementSibling.textContent = input.nextElementSibling.dataset.bounds;
  }
}
