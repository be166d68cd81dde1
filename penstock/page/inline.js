// The text within a block of Markdown: emphasis, code, links, math. In: a text, and the link references
// of its document. Out: a list of nodes. Not known here: the DOM, blocks.
// https://spec.commonmark.org/0.31.2/#inlines
//
// An open text still grows. Its open marks are read as if they were closed at its end, so that nothing
// flickers: "**bol" is bold already.
import { entity } from "./entities.js";
import { destinationAt, labelAt, matchAt, normalized, spacesAt, titleAt } from "./references.js";

const PLAIN = /[^\\`*_~[\]!<&$\n]+/y;
const CODE = /`+/y;
const ENTITY = /&(?:#[xX][0-9a-fA-F]{1,6}|#[0-9]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});/y;
const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const MATH = [
  /\$\$(?=[^$]*[\w\\])[^$]+\$\$/y,
  // Not the dollars of "$5 and $10": no space within the marks, no digit after them.
  /\$(?=\S)(?:[^$\n\\]|\\.)*[^\s\\$]\$(?!\d)/y,
  /\\\((?=[^\n]*?[A-Za-z0-9])[^\n]+?\\\)/y,
  /\\\[(?=[^\]]*?[A-Za-z0-9])(?:[^\\]|\\[^\]])+?\\\]/y,
];
const AUTOLINK = /<([A-Za-z][A-Za-z0-9.+-]{1,31}:[^\s<>\x00-\x1f]*)>/y;
const MAIL = /<([a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*)>/y;
const HTML = new RegExp(
  [
    "<[A-Za-z][A-Za-z0-9-]*(?:\\s+[a-zA-Z_:][\\w.:-]*(?:\\s*=\\s*(?:[^\"'=<>`\\s]+|'[^']*'|\"[^\"]*\"))?)*\\s*/?>",
    "</[A-Za-z][A-Za-z0-9-]*\\s*>", "<!-->", "<!--->", "<!--[\\s\\S]*?-->", "<[?][\\s\\S]*?[?]>",
    "<![A-Za-z]+[^>]*>", "<!\\[CDATA\\[[\\s\\S]*?\\]\\]>",
  ].join("|"),
  "y",
);
const SPACE = /\s/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;

/**
 * Return the nodes of a text. `references` maps labels to targets; `missing` collects the labels that it
 * does not have. `isOpen` says that the text still grows.
 */
export function parseInline(text, references, { isOpen = false, missing = new Set() } = {}) {
  const shown = isOpen ? text.trimEnd().replace(/(?:[*_~`\\]+|!?\[)$/, "") : text.trimEnd();
  return new InlineParser(shown, references, isOpen, missing).parse();
}

/** Resolve the escapes and entities of a link's destination, a title or the info of a code block. */
export function unescaped(text) {
  return text.replace(/\\([!-/:-@[-`{-~])|&(?:#[xX][0-9a-fA-F]{1,6}|#[0-9]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});/g,
    (all, character) => character ?? entity(all));
}

/** A list of nodes that are linked, so that any part of it can be moved into a new node. */
class Nodes {
  first = null;
  last = null;

  push(node) {
    node.before = this.last;
    node.after = null;
    if (this.last) this.last.after = node;
    else this.first = node;
    this.last = node;
    return node;
  }

  remove(node) {
    if (node.before) node.before.after = node.after;
    else this.first = node.after;
    if (node.after) node.after.before = node.before;
    else this.last = node.before;
  }

  insertAfter(place, node) {
    node.before = place;
    node.after = place.after;
    if (place.after) place.after.before = node;
    else this.last = node;
    place.after = node;
  }

  /** Move the nodes between two places into a list of their own; `to` null means up to the end. */
  takeBetween(from, to) {
    const taken = new Nodes();
    for (let node = from.after; node !== to; ) {
      const next = node.after;
      this.remove(node);
      taken.push(node);
      node = next;
    }
    return taken;
  }

  /** Return the nodes as plain values. Texts that follow each other are one. */
  plain() {
    const list = [];
    for (let node = this.first; node; node = node.after) {
      const { before, after, children, ...fields } = node;
      const value = children ? { ...fields, children: children.plain() } : fields;
      if (value.kind === "text" && value.text === "") continue;
      if (value.kind === "text" && list.at(-1)?.kind === "text") list.at(-1).text += value.text;
      else list.push(value);
    }
    return list;
  }
}

class InlineParser {
  #text;
  #references;
  #isOpen;
  #missing;
  #at = 0;
  #nodes = new Nodes();
  #delimiters = []; // runs of marks that may begin or end emphasis
  #brackets = []; // places where a link may have begun
  #noCode = new Set(); // lengths of runs of backticks that nothing closes

  constructor(text, references, isOpen, missing) {
    this.#text = text;
    this.#references = references;
    this.#isOpen = isOpen;
    this.#missing = missing;
  }

  parse() {
    while (this.#at < this.#text.length) this.#next();
    this.#closeEmphasis(0);
    if (this.#isOpen) this.#closeOpenEmphasis();
    return this.#nodes.plain();
  }

  #next() {
    const plain = this.#take(PLAIN);
    if (plain) return this.#push("text", plain[0]);
    const character = this.#text[this.#at];
    const isRead =
      (character === "\n" && this.#lineBreak()) ||
      ((character === "\\" || character === "$") && this.#math()) ||
      (character === "\\" && this.#escape()) ||
      (character === "`" && this.#code()) ||
      ("*_~".includes(character) && this.#delimiter(character)) ||
      (character === "[" && this.#openBracket(false)) ||
      (character === "!" && this.#text[this.#at + 1] === "[" && this.#openBracket(true)) ||
      (character === "]" && this.#closeBracket()) ||
      (character === "<" && this.#angle()) ||
      (character === "&" && this.#entity());
    if (!isRead) {
      this.#push("text", character);
      this.#at += 1;
    }
  }

  #take(pattern) {
    const found = matchAt(pattern, this.#text, this.#at);
    if (found) this.#at += found[0].length;
    return found;
  }

  #push(kind, text, fields = {}) {
    return this.#nodes.push({ kind, text, ...fields });
  }

  // --- Marks that stand alone --------------------------------------------------------------------

  #lineBreak() {
    const last = this.#nodes.last;
    const isHard = last?.kind === "text" && / {2}$/.test(last.text);
    if (last?.kind === "text") last.text = last.text.replace(/ +$/, "");
    this.#push(isHard ? "break" : "newline", "\n");
    this.#take(/\n[ \t]*/y);
    return true;
  }

  #escape() {
    if (this.#text[this.#at + 1] === "\n") {
      this.#at += 1;
      this.#push("break", "\n");
      this.#take(/\n[ \t]*/y);
      return true;
    }
    const escaped = this.#take(ESCAPE);
    if (escaped) this.#push("text", escaped[1]);
    return escaped !== null;
  }

  #math() {
    const found = MATH.map((each) => matchAt(each, this.#text, this.#at)).find(Boolean);
    if (!found) return false;
    this.#at += found[0].length;
    this.#push("math", found[0]);
    return true;
  }

  #code() {
    const mark = this.#take(CODE)[0];
    const begin = this.#at;
    if (!this.#noCode.has(mark.length)) {
      for (;;) {
        const next = this.#text.indexOf("`", this.#at);
        if (next < 0) break;
        this.#at = next;
        if (this.#take(CODE)[0].length === mark.length) {
          return this.#push("code", codeText(this.#text.slice(begin, this.#at - mark.length)));
        }
      }
      this.#noCode.add(mark.length);
    }
    if (this.#isOpen && mark.length < 3) {
      this.#at = this.#text.length;
      return this.#push("code", codeText(this.#text.slice(begin)));
    }
    this.#at = begin;
    return this.#push("text", mark);
  }

  #angle() {
    const link = this.#take(AUTOLINK) ?? this.#take(MAIL);
    if (link) {
      const children = new Nodes();
      children.push({ kind: "text", text: link[1] });
      const isMail = !link[1].includes(":");
      this.#push("link", "", { href: isMail ? `mailto:${link[1]}` : link[1], title: "", children });
      return true;
    }
    const html = this.#take(HTML);
    if (html) this.#push("html", html[0]);
    return html !== null;
  }

  #entity() {
    const found = this.#take(ENTITY);
    if (found) this.#push("text", entity(found[0]));
    return found !== null;
  }

  // --- Emphasis ----------------------------------------------------------------------------------

  #delimiter(mark) {
    let end = this.#at;
    while (this.#text[end] === mark) end += 1;
    const length = end - this.#at;
    const before = characterBefore(this.#text, this.#at);
    const after = String.fromCodePoint(this.#text.codePointAt(end) ?? 10);
    const [spaceBefore, spaceAfter] = [SPACE.test(before), SPACE.test(after)];
    const [signBefore, signAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const isLeft = !spaceAfter && (!signAfter || spaceBefore || signBefore);
    const isRight = !spaceBefore && (!signBefore || spaceAfter || signAfter);
    const isWord = mark === "_";
    const node = this.#push("text", this.#text.slice(this.#at, end));
    this.#at = end;
    if (mark === "~" && length > 2) return true;
    const canOpen = isLeft && (!isWord || !isRight || signBefore);
    const canClose = isRight && (!isWord || !isLeft || signAfter);
    if (canOpen || canClose) this.#delimiters.push({ mark, node, length, original: length, canOpen, canClose });
    return true;
  }

  /** Pair the delimiters from `bottom` on. */
  #closeEmphasis(bottom) {
    const all = this.#delimiters;
    const lowest = new Map(); // below these places there is no opener for such a closer
    let at = bottom;
    while (at < all.length) {
      const closer = all[at];
      if (!closer.canClose || closer.length === 0) {
        at += 1;
        continue;
      }
      const kind = `${closer.mark}${closer.canOpen}${closer.original % 3}${closer.mark === "~" ? closer.length : ""}`;
      const floor = Math.max(bottom, lowest.get(kind) ?? bottom);
      let found = at - 1;
      while (found >= floor && !fits(all[found], closer)) found -= 1;
      if (found < floor) {
        lowest.set(kind, at);
        if (!closer.canOpen) closer.length = 0;
        at += 1;
        continue;
      }
      const count = this.#pair(all[found], closer);
      for (let between = found + 1; between < at; between += 1) all[between].length = 0;
      all[found].length -= count;
      closer.length -= count;
    }
  }

  /** Move what is between two delimiters into emphasis. Return the number of marks that it took. */
  #pair(opener, closer) {
    const count = closer.mark === "~" ? closer.length : opener.length >= 2 && closer.length >= 2 ? 2 : 1;
    opener.node.text = opener.node.text.slice(count);
    closer.node.text = closer.node.text.slice(count);
    const children = this.#nodes.takeBetween(opener.node, closer.node);
    this.#nodes.insertAfter(opener.node, { kind: emphasisOf(closer.mark, count), text: "", children });
    return count;
  }

  /** Close the emphasis that is open at the end of a text that still grows, innermost first. */
  #closeOpenEmphasis() {
    for (const opener of this.#delimiters.reverse()) {
      while (opener.canOpen && opener.length > 0 && opener.node.after) {
        const count = opener.mark === "~" ? opener.length : Math.min(2, opener.length);
        opener.node.text = opener.node.text.slice(count);
        opener.length -= count;
        const children = this.#nodes.takeBetween(opener.node, null);
        this.#nodes.insertAfter(opener.node, { kind: emphasisOf(opener.mark, count), text: "", children });
      }
    }
  }

  // --- Links -------------------------------------------------------------------------------------

  #openBracket(isImage) {
    const mark = isImage ? "![" : "[";
    const node = this.#push("text", mark);
    this.#at += mark.length;
    this.#brackets.push({ node, isImage, at: this.#at, bottom: this.#delimiters.length, isActive: true });
    return true;
  }

  #closeBracket() {
    const opener = this.#brackets.pop();
    const end = this.#at + 1;
    if (!opener?.isActive) return false;
    const target = this.#inlineTarget(end) ?? this.#referenceTarget(opener, end) ?? this.#openTarget(end);
    if (target === null) return false;
    this.#at = target.end;
    this.#closeEmphasis(opener.bottom);
    this.#delimiters.length = opener.bottom;
    const children = this.#nodes.takeBetween(opener.node, null);
    this.#nodes.remove(opener.node);
    this.#push(opener.isImage ? "image" : "link", "", { href: target.href, title: target.title, children });
    if (!opener.isImage) for (const each of this.#brackets) each.isActive &&= each.isImage; // no link in a link
    return true;
  }

  /** Return the target in parentheses at a place, or null. */
  #inlineTarget(at) {
    const text = this.#text;
    if (text[at] !== "(") return null;
    const found = destinationAt(text, spacesAt(text, at + 1));
    if (found === null) return null;
    const beforeTitle = spacesAt(text, found.end);
    const title = beforeTitle > found.end ? titleAt(text, beforeTitle) : null;
    const end = spacesAt(text, title?.end ?? found.end);
    if (text[end] !== ")") return null;
    return { href: unescaped(found.href), title: unescaped(title?.title ?? ""), end: end + 1 };
  }

  /** Return the target that a label refers to: [text][label], [label][] or [label]. */
  #referenceTarget(opener, at) {
    const own = this.#text.slice(opener.at, at - 1);
    const second = labelAt(this.#text, at);
    const isFull = second !== null && second.label !== "";
    if (!isFull && labelAt(this.#text, opener.at - 1)?.end !== at) return null; // has brackets in it
    const label = normalized(isFull ? second.label : own);
    const target = this.#references.get(label);
    if (!target) {
      if (label !== "") this.#missing.add(label);
      return null;
    }
    return { href: unescaped(target.href), title: unescaped(target.title), end: second?.end ?? at };
  }

  /** Hide the destination of a link that still grows. */
  #openTarget(at) {
    if (!this.#isOpen || !/^\([^()\s]*$/.test(this.#text.slice(at))) return null;
    return { href: "", title: "", end: this.#text.length };
  }
}

const emphasisOf = (mark, count) => (mark === "~" ? "strike" : count === 2 ? "strong" : "emphasis");

function fits(opener, closer) {
  if (opener.mark !== closer.mark || !opener.canOpen || opener.length === 0) return false;
  if (closer.mark === "~") return opener.length === closer.length;
  const isEither = opener.canClose || closer.canOpen;
  return !isEither || (opener.original + closer.original) % 3 !== 0 || (opener.original % 3 === 0 && closer.original % 3 === 0);
}

function codeText(text) {
  const line = text.replaceAll("\n", " ");
  return /^ .*[^ ].* $/s.test(line) ? line.slice(1, -1) : line;
}

function characterBefore(text, at) {
  if (at === 0) return "\n";
  const isPair = at > 1 && /[\udc00-\udfff]/.test(text[at - 1]);
  return String.fromCodePoint(text.codePointAt(at - (isPair ? 2 : 1)));
}
