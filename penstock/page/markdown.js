// Shows a Markdown text while it grows. In: pieces of text. Out: nodes in an element. Text only becomes
// Text nodes, never markup. Not known here: where the text comes from.
//
// A closed block is shown once and never touched again, except when a link reference that it uses is
// defined later. The open blocks are brought up to date in place: a node that need not change stays, and
// with it a selection in it.
import { BlockParser } from "./blocks.js";
import { CodeView } from "./code.js";
import { parseInline } from "./inline.js";
import { element, inlineNodes, morph } from "./nodes.js";

const MAX_SHARE = 4; // after an update of t ms, the next one waits for three times as long

/** Shows one text in `target`. `changed` is called after each update. */
export class Markdown {
  text = "";
  #target;
  #changed;
  #parser = new BlockParser();
  #view;
  #pending = "";
  #frame = 0;
  #timer = 0;
  #waiting = new Map(); // label → the views of blocks that use it, undefined so far

  constructor(target, changed = () => {}) {
    this.#target = target;
    this.#changed = changed;
    this.#view = { kind: "document", node: target, content: target, children: [], settled: 0 };
  }

  /** Add text. It is shown with the next frame. */
  append(text) {
    this.text += text;
    this.#pending += text;
    if (!this.#frame && !this.#timer) this.#frame = requestAnimationFrame(() => this.#update());
  }

  /** Show all text now. The text is complete. */
  end() {
    this.#cancel();
    const labels = [...this.#parser.feed(this.#pending), ...this.#parser.end()];
    this.#pending = "";
    this.#show(labels, true);
  }

  /** Show all text now. More may follow. */
  flush() {
    this.#cancel();
    const labels = this.#parser.feed(this.#pending);
    this.#pending = "";
    this.#show(labels, false);
  }

  /** A long open paragraph takes longer to show: then updates are rarer, and the page stays smooth. */
  #update() {
    const begin = performance.now();
    this.flush();
    const wait = (performance.now() - begin) * (MAX_SHARE - 1);
    if (wait < 8) return;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      if (this.#pending !== "") this.#update();
    }, wait);
  }

  #cancel() {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#timer);
    this.#frame = this.#timer = 0;
  }

  #show(newLabels, isEnded) {
    this.#sync(this.#view, this.#parser.root, isEnded);
    for (const label of newLabels) {
      const waiting = this.#waiting.get(label) ?? [];
      this.#waiting.delete(label);
      for (const { view, block } of waiting) this.#fill(view, block, true);
    }
    this.#changed();
  }

  // --- Blocks ------------------------------------------------------------------------------------

  /** Bring a view up to date with its block. `isFinal` says that the block cannot change any more. */
  #sync(view, block, isFinal) {
    if (view.code) return view.code.show(block.text, isFinal);
    if (!CONTAINERS.has(block.kind)) return this.#fill(view, block, isFinal);
    if (block.kind === "list") view.node.className = block.isTight ? "tight" : "loose";
    for (let at = view.settled; at < block.children.length; at += 1) {
      const child = shapeOf(block.children[at]);
      const key = keyOf(child, at);
      if (view.children[at]?.key !== key) this.#replace(view, at, child, key);
      this.#sync(view.children[at], child, isFinal || at < block.settled);
    }
    for (const extra of view.children.splice(block.children.length)) extra.node.remove();
    view.settled = isFinal ? block.children.length : block.settled;
  }

  #replace(parent, at, block, key) {
    const view = { key, children: [], settled: 0, ...build(block, at, parent) };
    view.content ??= view.node;
    if (parent.children[at]) parent.children[at].node.replaceWith(view.node);
    else (at > 0 && parent.rest ? parent.rest : parent.content).append(view.node);
    parent.children[at] = view;
  }

  /** Show the text of a block in place. */
  #fill(view, block, isFinal) {
    const shown = `${isFinal}${block.cells?.join("|") ?? block.text}`;
    if (view.shown === shown && !view.isWaiting) return;
    view.shown = shown;
    const missing = new Set();
    const read = (text) => inlineNodes(parseInline(text, this.#parser.references, { isOpen: !isFinal, missing }));
    fill(view, block, read);
    view.isWaiting = false;
    if (!isFinal) return;
    for (const label of missing) {
      view.isWaiting = true;
      if (!this.#waiting.has(label)) this.#waiting.set(label, []);
      this.#waiting.get(label).push({ view, block });
    }
  }
}

const CONTAINERS = new Set(["document", "quote", "list", "item", "table"]);
const TASK = /^\[([ xX])\][ \t]+(?=\S)/;

/** The first line of a table, before its row of dashes, is shown as a table already. */
function shapeOf(block) {
  if (block.kind !== "paragraph" || !block.isOpen || !/^\|[^\n]*$/.test(block.text)) return block;
  const cells = block.text.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
  const row = { kind: "row", cells, children: [], text: "" };
  return { kind: "table", align: cells.map(() => ""), children: [row], settled: 0, isOpen: true };
}

/** Blocks with the same key have the same elements: only their texts differ. */
function keyOf({ kind, level, isOrdered, first, mode, info, fence, align }, at) {
  if (kind === "row") return `row ${at === 0}`;
  return [kind, level, isOrdered, first, mode, info, fence, align].join(" ");
}

/** Return the elements of a block: its `node`, and the `content` for its children if that is another one. */
function build(block, at, parent) {
  switch (block.kind) {
    case "quote":
      return { node: element("blockquote") };
    case "list": {
      const node = element(block.isOrdered ? "ol" : "ul");
      if (block.isOrdered && block.first !== 1) node.start = block.first;
      return { node };
    }
    case "item":
      return { node: element("li") };
    case "heading": {
      const node = element(`h${Math.min(6, block.level + 2)}`); // the page has the levels above
      node.dataset.level = block.level;
      return { node };
    }
    case "rule":
      return { node: element("hr") };
    case "code": {
      const code = new CodeView(block.info);
      return { node: code.node, code };
    }
    case "math":
    case "html":
      return { node: element("pre", { className: block.kind === "math" ? "math" : "markup", tabIndex: 0 }) };
    case "table": {
      const [head, rest] = [element("thead"), element("tbody")];
      const table = element("table", {}, head, rest);
      return { node: element("div", { className: "table", tabIndex: 0 }, table), content: head, rest, align: block.align };
    }
    case "row":
      return { node: element("tr"), align: parent.align, isHead: at === 0 };
    default:
      return { node: element("p"), isTask: parent.key?.startsWith("item") && at === 0 };
  }
}

/** Put the text of a block into its elements. */
function fill(view, block, read) {
  switch (block.kind) {
    case "rule":
      return;
    case "math":
    case "html":
      return morph(view.node, [block.text]);
    case "row":
      return morph(view.node, view.align.map((align, at) => cell(view, read(block.cells[at] ?? ""), align)));
    default: {
      const task = view.isTask ? TASK.exec(block.text) : null;
      const nodes = read(task ? block.text.slice(task[0].length) : block.text);
      morph(view.node, task ? [checkbox(task[1] !== " "), ...nodes] : nodes);
    }
  }
}

function cell({ isHead }, nodes, align) {
  const made = element(isHead ? "th" : "td", { dir: "auto" }, ...nodes);
  if (align) made.className = align;
  return made;
}

function checkbox(isDone) {
  const box = element("input", { type: "checkbox", disabled: true, ariaLabel: isDone ? "Done" : "To do" });
  box.toggleAttribute("checked", isDone);
  return box;
}
