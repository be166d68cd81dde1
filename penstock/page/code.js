// A block of code that still grows: its language, a copy button and quiet colors. In: the text so far.
// Out: elements. Complete lines are shown once; only the last line is shown again when it grows.
import { Highlighter } from "./highlight.js";
import { unescaped } from "./inline.js";
import { element } from "./nodes.js";

/** Shows code. `info` is the text after the opening fence; its first word is the language. */
export class CodeView {
  #code;
  #tail = element("span"); // the last line
  #numShown = 0; // characters of complete lines
  #highlighter;
  #text = "";

  constructor(info) {
    const language = unescaped(info).split(/\s/, 1)[0];
    this.#highlighter = new Highlighter(language.toLowerCase());
    this.#code = element("code", { className: language ? `language-${language}` : "" }, this.#tail);
    const copy = element("button", { type: "button", className: "quiet", textContent: "Copy" });
    copy.addEventListener("click", () => copyText(copy, this.#text));
    const head = element("figcaption", {}, element("span", { textContent: language || "text" }), copy);
    this.node = element("figure", { className: "code", dir: "ltr" }, head, element("pre", { tabIndex: 0 }, this.#code));
  }

  show(text, isFinal) {
    this.#text = text;
    // Blank lines at the end may not belong to the code.
    const complete = isFinal ? text.length : text.lastIndexOf("\n", text.trimEnd().length - 1) + 1;
    if (complete > this.#numShown) {
      const lines = text.slice(this.#numShown, complete).split(/(?<=\n)/);
      for (const line of lines) this.#tail.before(...colored(this.#highlighter.line(line)));
      this.#numShown = complete;
    }
    this.#tail.replaceChildren(...colored(this.#highlighter.tail(text.slice(this.#numShown))));
  }
}

const colored = (parts) => parts.map(([kind, text]) => (kind ? element("span", { className: kind, textContent: text }) : text));

/** Copy a text, and say so on the button for a moment. */
export async function copyText(button, text) {
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed"; // the browser forbids it, as it does without HTTPS
  }
  setTimeout(() => (button.textContent = name), 1500);
}
