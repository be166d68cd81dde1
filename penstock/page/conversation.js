// A conversation: a tree of turns, because a turn can have other versions beside it. In: turns as plain
// objects, as they are kept. Out: the turns that are shown, and the messages of a request. Not known here:
// the DOM, the server, where conversations are kept.
//
// A turn is {id, conversation, parent, role, text, reasoning, calls, state, note, stream, prefix, created}.
// `parent` is the id of the turn before it, or null. `state` is "open" while its answer runs, else a state of
// endings.js. `stream` is the id of the running stream, or null. `prefix` is the text before a continuation.

const MAX_TITLE = 60;

/** Return a new random id. (`crypto.randomUUID` needs HTTPS.) */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Conversation {
  /** `meta` is {id, title, created, updated, system, sampling, chosen}; `turns` are in any order. */
  constructor(meta = newMeta(), turns = []) {
    this.meta = meta;
    this.turns = new Map(turns.map((turn) => [turn.id, turn]));
  }

  /** Return the turns that are shown, first to last. */
  path() {
    const path = [];
    for (let turn = this.#chosen(null); turn; turn = this.#chosen(turn.id)) path.push(turn);
    return path;
  }

  /** Return the versions of a turn, oldest first. */
  versions(turn) {
    return this.#children(turn.parent);
  }

  /** Add a turn after `parent` (an id or null), and show it. */
  add(role, text, parent) {
    const turn = {
      id: newId(), conversation: this.meta.id, parent, role, text, reasoning: "", calls: [],
      state: "finished", note: "", stream: null, prefix: "", created: Date.now(),
    };
    this.turns.set(turn.id, turn);
    this.choose(turn);
    if (role === "user" && this.meta.title === "") this.meta.title = titleOf(text);
    this.meta.updated = turn.created;
    return turn;
  }

  /** Show this version of a turn. */
  choose(turn) {
    this.meta.chosen[turn.parent ?? ""] = turn.id;
  }

  /** Remove a turn and all turns after it. Return the removed turns. */
  remove(turn) {
    const removed = [turn, ...this.#children(turn.id).flatMap((child) => this.remove(child))];
    this.turns.delete(turn.id);
    delete this.meta.chosen[turn.id];
    if (this.meta.chosen[turn.parent ?? ""] === turn.id) delete this.meta.chosen[turn.parent ?? ""];
    return removed;
  }

  /** Return the messages up to a turn (an id or null), as the model gets them. */
  messages(upTo) {
    const messages = [];
    for (let turn = this.turns.get(upTo); turn; turn = this.turns.get(turn.parent)) {
      if (turn.text !== "") messages.unshift({ role: turn.role, content: turn.text });
    }
    if (this.meta.system.trim() !== "") messages.unshift({ role: "system", content: this.meta.system });
    return messages;
  }

  #children(parent) {
    return [...this.turns.values()].filter((turn) => turn.parent === parent).sort((a, b) => a.created - b.created);
  }

  #chosen(parent) {
    const children = this.#children(parent);
    return children.find((turn) => turn.id === this.meta.chosen[parent ?? ""]) ?? children.at(-1);
  }
}

export function newMeta() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system: "", sampling: {}, chosen: {} };
}

export function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length <= MAX_TITLE ? line : `${line.slice(0, MAX_TITLE - 1).trimEnd()}…`;
}
