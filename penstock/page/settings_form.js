// The system prompt and the sampling of a conversation, in a dialog. In: a conversation's own fields, as plain
// objects. Out: the same objects, changed. An empty field means the model's own value,
// which its placeholder shows.

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

/** Show the model's own values in the empty fields, as far as the server tells them. */
export async function showDefaults(key) {
  const headers = key === "" ? {} : { Authorization: `Bearer ${key}` };
  const answer = await fetch("props", { headers, cache: "no-store" }).catch(() => null);
  if (!answer?.ok) return;
  const { params } = (await answer.json()).default_generation_settings;
  for (const name of ["temperature", "top_p", "top_k"]) {
    // The server's own numbers: 0.800000011920929 was 0.8 in the model's file.
    if (Number.isFinite(params[name])) at(name).placeholder = String(Number(params[name].toPrecision(4)));
  }
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
