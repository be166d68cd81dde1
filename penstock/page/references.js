// Link references and the parts that links share with them: labels, destinations, titles.
// https://spec.commonmark.org/0.31.2/#link-reference-definitions In: text. Out: what stands at a place.

const LABEL = /\[((?:[^\\[\]]|\\.){0,999})\]/sy;
const IN_BRACKETS = /<((?:[^<>\n\\]|\\.)*)>/y;
const TITLE = /"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|\(((?:[^()\\]|\\.)*)\)/sy;
const SPACES = /[ \t]*(?:\n[ \t]*)?/y;
const MAX_PARENTHESES = 32;

/** Return the match of a sticky pattern at a place, or null. */
export function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Return the label as it is compared with other labels. */
export const normalized = (label) => label.trim().replace(/[ \t\r\n]+/g, " ").toLowerCase().toUpperCase();

/** Return the label at a place and the place after it: `{label, end}`, or null. */
export function labelAt(text, at) {
  const found = matchAt(LABEL, text, at);
  return found && { label: found[1], end: at + found[0].length };
}

/** Return the destination of a link at a place: `{href, end}`, or null. */
export function destinationAt(text, at) {
  const found = matchAt(IN_BRACKETS, text, at);
  if (found) return { href: found[1], end: at + found[0].length };
  if (text[at] === "<") return null;
  let depth = 0;
  let end = at;
  for (; end < text.length; end += 1) {
    const character = text[end];
    if (character === "\\" && /[!-/:-@[-`{-~]/.test(text[end + 1] ?? "")) end += 1;
    else if (character === "(") depth += 1;
    else if (character === ")" && (depth -= 1) < 0) break;
    else if (character <= " " || character === "\x7f") break;
    if (depth > MAX_PARENTHESES) return null;
  }
  return depth > 0 ? null : { href: text.slice(at, end), end };
}

/** Return the title at a place: `{title, end}`, or null. */
export function titleAt(text, at) {
  const found = matchAt(TITLE, text, at);
  const title = found && (found[1] ?? found[2] ?? found[3]);
  return found && { title, end: at + found[0].length };
}

export const spacesAt = (text, at) => at + matchAt(SPACES, text, at)[0].length;

/** Take a definition from the start of a text: `{label, target, rest}`, or null if there is none. */
export function takeReference(text) {
  const label = labelAt(text, 0);
  if (label === null || text[label.end] !== ":" || label.label.trim() === "") return null;
  const begin = spacesAt(text, label.end + 1);
  const found = destinationAt(text, begin);
  if (found === null || found.end === begin) return null;
  const lineEnd = (at) => (/^[ \t]*(?:\n|$)/.test(text.slice(at)) ? at + /^[ \t]*\n?/.exec(text.slice(at))[0].length : null);
  const beforeTitle = spacesAt(text, found.end);
  const title = beforeTitle > found.end ? titleAt(text, beforeTitle) : null;
  let end = title && lineEnd(title.end);
  const hasTitle = end !== null;
  end ??= lineEnd(found.end);
  if (end === null) return null;
  return {
    label: normalized(label.label),
    target: { href: found.href, title: hasTitle ? title.title : "" },
    rest: text.slice(end),
  };
}
