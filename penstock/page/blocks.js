// The blocks of a Markdown text that still grows: CommonMark 0.31 (https://spec.commonmark.org/0.31.2/),
// with tables, and math between lines of $$ or \[ \]. In: text, cut anywhere. Out: a tree of blocks. Not
// known here: the DOM, the text within a paragraph (inline.js).
//
// Each complete line is read once. Only the last, incomplete line is read again when it grows: what it
// changed is taken back first. Only the open blocks can change: those at the end of the tree.
import { Line } from "./line.js";
import { takeReference } from "./references.js";

const HTML_STARTS = [
  /^<(?:script|pre|textarea|style)(?:\s|>|$)/i, /^<!--/, /^<[?]/, /^<![A-Za-z]/, /^<!\[CDATA\[/,
  /^<[/]?(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|dialog|dir|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[123456]|head|header|hr|html|iframe|legend|li|link|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|search|section|summary|table|tbody|td|tfoot|th|thead|title|tr|track|ul)(?:\s|[/]?>|$)/i,
  /^(?:<[A-Za-z][\w-]*(?:\s+[A-Za-z_:][\w.:-]*(?:\s*=\s*(?:[^"'=<>`\s]+|'[^']*'|"[^"]*"))?)*\s*\/?>|<\/[A-Za-z][\w-]*\s*>)\s*$/,
];
const HTML_ENDS = [/<\/(?:script|pre|textarea|style)>/i, /-->/, /\?>/, />/, /\]\]>/];
const RULE = /^(?:\*[ \t]*){3,}$|^(?:_[ \t]*){3,}$|^(?:-[ \t]*){3,}$/;
const DELIMITER_ROW = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
// A last line of marks only: it may become a list, a heading, a rule, a table or emphasis.
const ONLY_MARKS = /^[\s>]*(?:[-*+_=#`~$\\[]+|\d{1,9}[.)]?|\|[-:| ]*|:-[-:| ]*)?\s*$/;
const MAX_DEPTH = 50; // of nested blocks; deeper marks are text

/** Return a new block. All fields are there from the start, so that a change can be taken back. */
function block(kind, line, fields = {}) {
  return {
    kind, children: [], text: "", isOpen: true,
    settled: 0, // so many children are closed for good
    start: line, end: line, // numbers of lines
    hasText: false, isFresh: false,
    ...fields,
  };
}

const TAKES_LINES = new Set(["paragraph", "code", "html", "math"]);
const LEAVES = new Set([...TAKES_LINES, "heading", "rule", "table", "row"]);

export class BlockParser {
  root = block("document", 0);
  references = new Map(); // label → {href, title}
  #newLabels = [];
  #tip = this.root; // the innermost open block
  #open = [this.root]; // the open blocks, outermost first
  #number = 0; // of the line
  #pending = ""; // the incomplete line
  #saved = null; // how to take the incomplete line back
  #isTrial = false;

  /** Add text. It may end anywhere. Return the labels of the link references that are new for good. */
  feed(text) {
    this.#takeBack();
    this.#pending += text;
    const lines = this.#pending.split(/\r\n|\n|\r(?!$)/); // a last \r may be half a line break
    this.#pending = lines.pop();
    for (const line of lines) this.#read(line);
    const labels = this.#settle();
    if (!ONLY_MARKS.test(this.#pending)) this.#try(this.#pending);
    return labels;
  }

  /** The text is complete: close all blocks. Return the labels of new link references. */
  end() {
    this.#takeBack();
    if (this.#pending !== "") this.#read(this.#pending.replace(/\r$/, ""));
    this.#pending = "";
    this.#closeDownTo(0);
    this.root.isOpen = false;
    return this.#settle();
  }

  /** Read the incomplete line, so that it can be taken back. */
  #try(line) {
    this.#saved = {
      open: this.#open.map((each) => ({ each, fields: { ...each }, count: each.children.length })),
      number: this.#number,
    };
    this.#isTrial = true;
    this.#read(line.replace(/\r$/, ""));
    this.#isTrial = false;
  }

  #takeBack() {
    if (this.#saved === null) return;
    for (const { each, fields, count } of this.#saved.open) {
      Object.assign(each, fields);
      each.children.length = count;
    }
    this.#open = this.#saved.open.map(({ each }) => each);
    this.#tip = this.#open.at(-1);
    this.#number = this.#saved.number;
    for (const label of this.#newLabels) this.references.delete(label);
    this.#newLabels = [];
    this.#saved = null;
  }

  /** Note which blocks are closed for good. */
  #settle() {
    for (const each of this.#open) {
      each.settled = each.children.length - (each.children.at(-1)?.isOpen ? 1 : 0);
    }
    const labels = this.#newLabels;
    this.#newLabels = [];
    return labels;
  }

  // --- A line ------------------------------------------------------------------------------------

  #read(text) {
    this.#number += 1;
    const line = new Line(text.replaceAll("\0", "\ufffd"));
    let depth = 1;
    for (; depth < this.#open.length; depth += 1) {
      const goesOn = this.#continues(this.#open[depth], line);
      if (goesOn === "done") return;
      if (!goesOn) break;
    }
    const matched = depth;
    let container = this.#open[depth - 1];
    let closed = matched === this.#open.length; // nothing is left to close
    const close = () => {
      if (!closed) this.#closeDownTo(matched);
      closed = true;
    };
    let isLeaf = TAKES_LINES.has(container.kind) && container.kind !== "paragraph";
    while (!isLeaf && !line.isBlank) {
      const start = this.#starts(container, line, close);
      if (start === null) break;
      container = this.#tip;
      isLeaf = start === "leaf";
      if (isLeaf && !TAKES_LINES.has(container.kind)) return;
    }
    this.#addText(container, line, close, closed);
  }

  #addText(container, line, close, closed) {
    if (!closed && !line.isBlank && this.#tip.kind === "paragraph") {
      return this.#addLine(this.#tip, line.trimmed()); // a lazy continuation
    }
    close();
    container = this.#tip;
    if (container.kind === "table" && !line.isBlank) return this.#addRow(container, line.trimmed());
    if (TAKES_LINES.has(container.kind)) {
      const isParagraph = container.kind === "paragraph";
      if (isParagraph && line.isBlank) return;
      this.#addLine(container, isParagraph ? line.trimmed() : line.rest());
      if (container.kind === "html" && HTML_ENDS[container.html]?.test(line.rest())) this.#closeDownTo(this.#open.length - 1);
    } else if (!line.isBlank) {
      this.#add("paragraph");
      this.#addLine(this.#tip, line.trimmed());
    }
  }

  /** Return whether an open block goes on with this line; "done" if the line is used up. */
  #continues(open, line) {
    switch (open.kind) {
      case "quote":
        if (!line.takeQuoteMark()) return false;
        open.end = this.#number;
        return true;
      case "list":
        return true;
      case "item":
        if (line.isBlank) return open.children.length > 0;
        if (line.indent < open.indent) return false;
        line.skipColumns(open.indent);
        return true;
      case "code":
        return open.fence === "" ? this.#continuesIndented(line) : this.#continuesFence(open, line);
      case "math":
        if (line.trimmed().trimEnd() !== open.fence) return true;
        open.end = this.#number;
        this.#closeDownTo(this.#open.indexOf(open));
        return "done";
      case "html":
        return !(line.isBlank && open.html >= 5);
      case "paragraph":
      case "table":
        return !line.isBlank;
      default:
        return false;
    }
  }

  #continuesIndented(line) {
    if (line.indent >= 4) line.skipColumns(4);
    else if (!line.isBlank) return false;
    else line.skipIndent();
    return true;
  }

  #continuesFence(open, line) {
    const text = line.trimmed().trimEnd();
    const isEnd = line.indent < 4 && text.length >= open.fence.length && text === open.fence[0].repeat(text.length);
    if (isEnd) {
      open.end = this.#number;
      this.#closeDownTo(this.#open.indexOf(open));
      return "done";
    }
    line.skipColumns(Math.min(line.indent, open.fenceIndent));
    return true;
  }

  // --- The start of a block ----------------------------------------------------------------------

  /** Open the block that starts here. Return "container", "leaf", or null if none starts. */
  #starts(container, line, close) {
    if (line.indent >= 4) {
      if (this.#tip.kind === "paragraph") return null;
      close();
      line.skipColumns(4);
      this.#add("code", { fence: "", info: "" });
      return "leaf";
    }
    if (this.#open.length > MAX_DEPTH) return null;
    const text = line.trimmed();
    return this.#startsQuote(text, line, close)
      ?? this.#startsHeading(text, container, close)
      ?? this.#startsFence(text, line, close)
      ?? this.#startsHtml(text, container, line, close)
      ?? this.#startsTable(text, container, close)
      ?? this.#startsRule(text, close)
      ?? this.#startsItem(text, container, line, close);
  }

  #startsQuote(text, line, close) {
    if (text[0] !== ">") return null;
    line.takeQuoteMark();
    close();
    this.#add("quote");
    return "container";
  }

  #startsHeading(text, container, close) {
    const atx = /^(#{1,6})(?:[ \t]+|$)/.exec(text);
    if (atx) {
      close();
      const content = text.slice(atx[0].length).replace(/^[ \t]*#+[ \t]*$/, "").replace(/[ \t]+#+[ \t]*$/, "").trimEnd();
      this.#add("heading", { level: atx[1].length, text: content });
      this.#closeDownTo(this.#open.length - 1);
      return "leaf";
    }
    // While its line is incomplete, a - may still become a list.
    if (container.kind !== "paragraph" || this.#isTrial || !/^(?:=+|-+)[ \t]*$/.test(text)) return null;
    if (this.#open.at(-1) !== container) return null; // a lazy line cannot underline
    this.#takeReferences(container);
    if (container.text === "") return null;
    Object.assign(container, { kind: "heading", level: text[0] === "=" ? 1 : 2, text: container.text.trimEnd(), end: this.#number });
    this.#closeDownTo(this.#open.length - 1);
    return "leaf";
  }

  #startsFence(text, line, close) {
    const fence = /^(?:`{3,}(?!.*`)|~{3,})/.exec(text)?.[0];
    const math = /^(?:\$\$|\\\[)[ \t]*$/.test(text) ? (text[0] === "$" ? "$$" : "\\]") : null;
    if (!fence && !math) return null;
    close();
    if (math) this.#add("math", { fence: math });
    else this.#add("code", { fence, fenceIndent: line.indent, info: text.slice(fence.length).trim() });
    line.skipAll();
    this.#tip.isFresh = true; // its first line is the fence
    return "leaf";
  }

  #startsHtml(text, container, line, close) {
    if (text[0] !== "<") return null;
    const html = HTML_STARTS.findIndex((start) => start.test(text));
    if (html < 0 || (html === 6 && (container.kind === "paragraph" || this.#tip.kind === "paragraph"))) return null;
    close();
    this.#add("html", { html });
    return "leaf";
  }

  /** A row of dashes turns the line before it, the last line of a paragraph, into the head of a table. */
  #startsTable(text, container, close) {
    if (container.kind !== "paragraph" || this.#open.at(-1) !== container || this.#isTrial) return null;
    if (!DELIMITER_ROW.test(text) || !/[|:]/.test(text)) return null;
    const lines = container.text.split("\n");
    const head = lines.at(-1);
    const marks = cellsOf(text);
    if (!head.includes("|") || cellsOf(head).length !== marks.length) return null;
    close();
    const align = marks.map((mark) => ALIGNMENTS[`${mark.startsWith(":")}${mark.endsWith(":")}`]);
    if (lines.length === 1) {
      Object.assign(container, { kind: "table", align, text: "", end: this.#number });
    } else {
      container.text = lines.slice(0, -1).join("\n");
      this.#closeDownTo(this.#open.length - 1);
      this.#add("table", { align });
    }
    this.#addRow(this.#tip, head);
    return "leaf";
  }

  #startsRule(text, close) {
    if (!RULE.test(text)) return null;
    close();
    this.#add("rule");
    this.#closeDownTo(this.#open.length - 1);
    return "leaf";
  }

  #startsItem(text, container, line, close) {
    const found = /^(?:[*+-]|(\d{1,9})([.)]))(?=[ \t]|$)/.exec(text);
    if (!found) return null;
    const [mark, number, delimiter] = found;
    const isEmpty = text.slice(mark.length).trim() === "";
    if (container.kind === "paragraph" && (isEmpty || (number !== undefined && Number(number) !== 1))) return null;
    const indent = line.takeListMark(mark.length);
    close();
    const mode = delimiter ?? mark; // lists with other marks are other lists
    const last = this.#tip;
    if (last.kind !== "list" || last.mode !== mode) {
      this.#add("list", { mode, isOrdered: delimiter !== undefined, first: Number(number ?? 1), isTight: true });
    }
    this.#add("item", { indent });
    return "container";
  }

  // --- The tree ----------------------------------------------------------------------------------

  /** Add a block to the innermost open block that can contain it, and open it. */
  #add(kind, fields = {}) {
    while (LEAVES.has(this.#tip.kind) || (this.#tip.kind === "list" && kind !== "item")) {
      this.#closeDownTo(this.#open.length - 1);
    }
    const parent = this.#tip;
    const added = block(kind, this.#number, fields);
    const before = parent.children.at(-1);
    if (before && lastLineOf(before) + 1 < this.#number) this.#loosen(parent);
    parent.children.push(added);
    this.#open.push(added);
    this.#tip = added;
  }

  /** A blank line lies between two children: if they are of a list, the list is loose. */
  #loosen(parent) {
    if (parent.kind === "list") parent.isTight = false;
    if (parent.kind === "item") this.#open[this.#open.indexOf(parent) - 1].isTight = false;
  }

  #addLine(open, text) {
    if (open.isFresh) {
      open.isFresh = false;
    } else {
      open.text = open.hasText ? `${open.text}\n${text}` : text;
      open.hasText = true;
    }
    if (text.trim() !== "" || open.kind !== "code" || open.fence !== "") open.end = this.#number;
  }

  #addRow(table, text) {
    const cells = cellsOf(text).slice(0, table.align.length);
    table.children.push(block("row", this.#number, { cells, isOpen: false }));
    table.end = this.#number;
  }

  /** Close the open blocks beyond the first `depth`, which may be 0 for all but the root. */
  #closeDownTo(depth) {
    while (this.#open.length > Math.max(1, depth)) {
      const closing = this.#open.pop();
      this.#tip = this.#open.at(-1);
      this.#close(closing);
    }
  }

  #close(closing) {
    closing.isOpen = false;
    if (closing.kind === "paragraph") {
      this.#takeReferences(closing);
      if (closing.text === "") this.#tip.children.pop();
    }
    if (closing.kind === "code" && closing.fence === "") closing.text = closing.text.replace(/(?:\n[ \t]*)+$/, "");
    if (closing.kind === "html") closing.text = closing.text.replace(/(?:\n[ \t]*)+$/, "");
    closing.settled = this.#isTrial ? closing.settled : closing.children.length;
  }

  /** Take the definitions of link references from the start of a paragraph. */
  #takeReferences(paragraph) {
    while (paragraph.text[0] === "[") {
      const found = takeReference(paragraph.text);
      if (found === null) return;
      paragraph.text = found.rest;
      if (this.references.has(found.label)) continue;
      this.references.set(found.label, found.target);
      this.#newLabels.push(found.label);
    }
  }
}

const ALIGNMENTS = { falsefalse: "", truefalse: "left", falsetrue: "right", truetrue: "center" };

function lastLineOf(each) {
  const last = each.children.at(-1);
  return last === undefined ? each.end : Math.max(each.end, lastLineOf(last));
}

/** Return the texts of a table's row. A \| belongs to its cell. */
export function cellsOf(row) {
  const text = row.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  const cells = [""];
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") cells[cells.length - 1] += text[(at += 1)];
    else if (text[at] === "\\") cells[cells.length - 1] += text[at] + (text[(at += 1)] ?? "");
    else if (text[at] === "|") cells.push("");
    else cells[cells.length - 1] += text[at];
  }
  return cells.map((cell) => cell.trim());
}
