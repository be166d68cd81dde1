// Shows one turn: who speaks, the text, the model's reasoning and tool calls, and what you can do with it. In: a
// turn, and pieces of its text while it runs. Out: an element; calls of the actions. Not known here: the
// conversation, the server.
import { button, confirmed } from "./buttons.js";
import { copyText } from "./code.js";
import { Markdown } from "./markdown.js";
import { element } from "./nodes.js";

/**
 * A view of `turn`. `actions` has `edit(turn, text)`, `regenerate(turn)`, `goOn(turn)`, `remove(turn)` and
 * `choose(turn)`. `grown` is called when the view has become longer.
 */
export class TurnView {
  #text = element("div", { className: "text", dir: "auto" });
  #reasoning = null; // a Markdown, once there is reasoning
  #calls = element("div", { className: "calls" });
  #note = element("p", { className: "note" });
  #tools = element("div", { className: "tools" });
  #speaker = element("h2", { className: "speaker" });
  #markdown;
  #actions;
  #grown;
  #isEdited = false;
  #shownButtons = ""; // what the buttons depend on, as they are shown

  constructor(turn, actions, grown) {
    this.turn = turn;
    this.#actions = actions;
    this.#grown = grown;
    this.#speaker.id = `speaker-${turn.id}`;
    this.node = element("article", { className: `turn ${turn.role}` }, this.#speaker, this.#text, this.#calls, this.#note, this.#tools);
    this.node.setAttribute("aria-labelledby", this.#speaker.id);
    this.#fill();
  }

  #fill() {
    const { turn } = this;
    this.#text.replaceChildren();
    if (turn.role === "user") return this.#text.append(turn.text);
    this.#markdown = new Markdown(this.#text, this.#grown);
    if (turn.text) this.#markdown.append(turn.text);
    if (turn.reasoning) this.grow("reasoning", turn.reasoning);
    this.#showCalls();
    this.#markdown.flush();
  }

  /** The answer goes on: show its text as one that grows. */
  reopen() {
    this.#fill();
  }

  /** Show a new piece of the answer's "text" or "reasoning", or its "calls". */
  grow(part, piece) {
    if (part === "text") return this.#markdown.append(piece);
    if (part === "calls") return this.#showCalls();
    if (this.#reasoning === null) {
      const box = element("div", { className: "thoughts", dir: "auto" });
      this.#reasoning = new Markdown(box);
      this.#text.before(element("details", { className: "reasoning" }, element("summary", { textContent: "Reasoning" }), box));
    }
    this.#reasoning.append(piece);
  }

  /** Bring all but the text up to date. `versions` are the versions of the turn, `model` its speaker. */
  update({ versions, model, isBusy, isLast }) {
    const { turn } = this;
    const isOpen = turn.state === "open";
    this.node.dataset.state = turn.state;
    this.node.ariaBusy = String(isOpen);
    this.#speaker.textContent = turn.role === "user" ? "You" : model;
    this.#note.textContent = turn.note;
    this.#note.hidden = turn.note === "";
    if (!isOpen) {
      this.#markdown?.end();
      this.#reasoning?.end();
    }
    if (this.#isEdited) return;
    // New buttons would forget what a press is about: that "Delete" has asked "Really?".
    const state = JSON.stringify([versions.map(({ id }) => id), isBusy, isOpen, isLast, turn.text === ""]);
    if (state === this.#shownButtons) return;
    this.#shownButtons = state;
    const focused = this.#tools.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.#tools.replaceChildren(...this.#buttons(versions, isBusy, isOpen, isLast));
    if (focused) [...this.#tools.children].find((each) => each.textContent === focused)?.focus();
  }

  #buttons(versions, isBusy, isOpen, isLast) {
    const { turn } = this;
    const { edit, regenerate, goOn, remove, choose } = this.#actions;
    const at = versions.indexOf(turn);
    const chooser = versions.length < 2 ? [] : [
      button("‹", () => choose(versions[at - 1]), { label: "Earlier version", isOff: at === 0 || isBusy }),
      element("span", { className: "version", textContent: `${at + 1}/${versions.length}` }),
      button("›", () => choose(versions[at + 1]), { label: "Later version", isOff: at === versions.length - 1 || isBusy }),
    ];
    if (isOpen) return chooser;
    const buttons = [];
    buttons.push(button("Copy", (event) => copyText(event.currentTarget, turn.text)));
    if (isBusy) return [...buttons, ...chooser];
    if (turn.role === "user") buttons.push(button("Edit", () => this.#edit(edit)));
    if (turn.role === "assistant" && turn.parent !== null) buttons.push(button("Regenerate", () => regenerate(turn)));
    if (turn.role === "assistant" && isLast && turn.text !== "") buttons.push(button("Continue", () => goOn(turn)));
    buttons.push(confirmed("Delete", () => remove(turn)));
    return [...buttons, ...chooser]; // behind the others, which stay where they are
  }

  #edit(edit) {
    this.#isEdited = true;
    const box = element("textarea", { value: this.turn.text, ariaLabel: "Your message", dir: "auto", rows: 3 });
    const close = () => {
      this.#isEdited = false;
      this.#fill();
      this.#tools.replaceChildren(...before);
      this.#tools.querySelector("button")?.focus();
    };
    const send = () => {
      const text = box.value;
      close();
      if (text.trim() !== "" && text !== this.turn.text) edit(this.turn, text);
    };
    box.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") close();
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      send();
    });
    const before = [...this.#tools.childNodes];
    this.#text.replaceChildren(box);
    this.#tools.replaceChildren(button("Send", send), button("Cancel", close));
    box.focus();
  }

  #showCalls() {
    const shown = this.turn.calls.map(({ name, arguments: text }) =>
      element("details", { className: "call" },
        element("summary", {}, "Tool call ", element("code", { textContent: name })),
        element("pre", { textContent: text, tabIndex: 0 })));
    shown.forEach((each, number) => (each.open = this.#calls.children[number]?.open ?? false));
    this.#calls.replaceChildren(...shown);
  }
}
