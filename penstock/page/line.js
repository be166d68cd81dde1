// A line of Markdown, read from left to right in columns: a tab reaches to the next multiple of 4.
// https://spec.commonmark.org/0.31.2/#tabs Not known here: blocks.

export class Line {
  #text;
  #at = 0; // the next character
  #column = 0; // its column
  #spaces = 0; // columns of a tab that was used in part

  constructor(text) {
    this.#text = text;
  }

  get isBlank() {
    return /^[ \t]*$/.test(this.#text.slice(this.#at));
  }

  /** The number of columns before the text. */
  get indent() {
    let column = this.#column + this.#spaces;
    for (let at = this.#at; at < this.#text.length; at += 1) {
      if (this.#text[at] === " ") column += 1;
      else if (this.#text[at] === "\t") column += 4 - (column % 4);
      else break;
    }
    return column - this.#column;
  }

  /** Return the rest of the line without its indent. */
  trimmed() {
    return this.#text.slice(this.#at).replace(/^[ \t]+/, "");
  }

  /** Return the rest of the line with its indent; a tab that was used in part is spaces. */
  rest() {
    return " ".repeat(this.#spaces) + this.#text.slice(this.#at);
  }

  /** Skip up to `count` columns of spaces and tabs. */
  skipColumns(count) {
    let left = count;
    while (left > 0) {
      if (this.#spaces > 0) {
        const used = Math.min(left, this.#spaces);
        this.#spaces -= used;
        this.#column += used;
        left -= used;
      } else if (this.#text[this.#at] === " ") {
        this.#at += 1;
        this.#column += 1;
        left -= 1;
      } else if (this.#text[this.#at] === "\t") {
        this.#at += 1;
        this.#spaces = 4 - (this.#column % 4);
      } else {
        return;
      }
    }
  }

  skipIndent() {
    this.skipColumns(this.indent);
  }

  skipAll() {
    this.#at = this.#text.length;
    this.#spaces = 0;
  }

  /** Skip the > of a block quote and one column after it. Return whether there is one. */
  takeQuoteMark() {
    if (this.indent >= 4 || this.trimmed()[0] !== ">") return false;
    this.#skipMark(1);
    this.skipColumns(1);
    return true;
  }

  /** Skip the mark of a list item. Return the columns by which the item's other lines are indented. */
  takeListMark(length) {
    const before = this.indent;
    this.#skipMark(length);
    const after = this.indent;
    const isCode = after > 4;
    const padding = this.isBlank || isCode ? 1 : after;
    this.skipColumns(padding);
    return before + length + padding;
  }

  #skipMark(length) {
    this.skipIndent();
    this.#at += length;
    this.#column += length;
  }
}
