// Character references such as &copy; and &#8212;. Browsers know the names of HTML, so no table is needed.

const INVALID = "\ufffd";
const known = new Map();

/** Return the text of a reference, which has the form of one. An unknown name stays as it is. */
export function entity(reference) {
  if (reference[1] === "#") return numeric(reference);
  if (!known.has(reference)) {
    // Only a name between & and ; gets here: there is no markup to parse, and nothing is shown.
    known.set(reference, new DOMParser().parseFromString(reference, "text/html").body.textContent);
  }
  return known.get(reference);
}

function numeric(reference) {
  const digits = reference.slice(2, -1);
  const code = /^[xX]/.test(digits) ? parseInt(digits.slice(1), 16) : parseInt(digits, 10);
  const isValid = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return isValid ? String.fromCodePoint(code) : INVALID;
}
