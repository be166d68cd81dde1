// The pipe: one picture of a stream's life, which tells it without words. In: the state of a stream. Out: an
// element, from left to right: the line of those who wait, the valve (the prompt is read), the tube with the
// water (tokens flow), and the mouth (how it ended). Not known here: where states come from.
//
// A state is one of these values; every field may be absent:
//   {kind: "idle"}
//   {kind: "queued",     place, seconds}   place 1 is next; the expected wait
//   {kind: "prefill",    fraction}         so much of the prompt was read, 0 to 1
//   {kind: "flowing",    rate}             tokens per second
//   {kind: "cut"}                          nobody reads it, or the connection is lost
//   {kind: "resumed",    rate}             a reader is back
//   {kind: "stalled",    seconds}          no token for so long
//   {kind: "restarting", kept}             the engine comes back; so many tokens are kept
//   {kind: "ended",      reason}           a finish reason, or a state of the page
import { element } from "./nodes.js";

const MAX_DOTS = 5; // a longer line looks the same
const MAX_JOINTS = 12;
const STALL_MS = 2000; // as the server has it (live/rows.py)
const JOINED_MS = 2000;
const WATCH_MS = 500;
const FINISHED = ["stop", "length", "tool_calls", "finished"];
const STOPPED = ["cancelled", "deadline", "client_gone", "moved", "stopped"];

export class Pipe {
  #line = element("span", { className: "line" });
  #water = element("span", { className: "water" });
  #tube = element("span", { className: "tube" }, this.#water);
  #level = 0;
  #kind = "";
  #place = null;
  #moves = 0; // since the last look of the watch
  #movedAt = 0;
  #shownAt = 0;
  #watch = null;

  /** Draw into `node`, an empty element of the class "pipe". */
  constructor(node = element("span", { className: "pipe" })) {
    this.node = node;
    node.append(this.#line, element("span", { className: "valve" }), this.#tube, element("span", { className: "mouth" }));
    this.show({ kind: "idle" });
  }

  /** Show a state. */
  show(state) {
    const { kind } = state;
    if (kind === "resumed" && this.#kind !== "resumed") this.#join();
    if (kind === "idle" || kind === "queued") this.#tube.replaceChildren(this.#water);
    if (kind !== "flowing" && kind !== "resumed") this.#unwatch();
    this.#kind = kind;
    this.#shownAt = performance.now();
    set(this.node, "pipe", kind);
    set(this.node, "end", kind === "ended" ? endOf(state.reason) : undefined);
    this.#draw(kind === "queued" ? (state.place ?? 1) : null);
    if (kind === "prefill") {
      set(this.node, "known", state.fraction == null ? undefined : "");
      this.node.style.setProperty("--fraction", state.fraction ?? 0.25);
    }
    if (state.rate != null) this.#flow(state.rate);
  }

  /** Let the water fill this part of the tube, 0 to 1. */
  fill(level) {
    if (level === this.#level) return;
    this.#level = level;
    this.node.style.setProperty("--level", level);
  }

  /** A token has come. While they come, the water moves as fast as they do; it stands still if none comes. */
  moved() {
    this.#moves += 1;
    this.#movedAt = performance.now();
    if (this.#kind === "stalled") this.show({ kind: "flowing" });
    this.#watch ??= setInterval(() => this.#look(), WATCH_MS);
  }

  #look() {
    const now = performance.now();
    const silence = now - this.#movedAt;
    if (silence >= STALL_MS) return this.show({ kind: "stalled", seconds: silence / 1000 });
    if (this.#moves) this.#flow((this.#moves * 1000) / WATCH_MS);
    this.#moves = 0;
    if (this.#kind === "resumed" && now - this.#shownAt >= JOINED_MS) this.show({ kind: "flowing" });
  }

  #unwatch() {
    clearInterval(this.#watch);
    this.#watch = null;
    this.#moves = 0;
  }

  /** Water moves one stripe for five tokens, but neither too slowly nor too fast to be seen. */
  #flow(rate) {
    const seconds = Math.min(3, Math.max(0.35, 5 / Math.max(rate, 0.1)));
    this.node.style.setProperty("--beat", `${(Math.round(seconds * 10) / 10).toFixed(1)}s`);
  }

  /** Draw the line: this stream's own dot, and those before it, next to the valve. */
  #draw(place) {
    if (place === this.#place) return;
    this.#place = place;
    const number = place === null ? 0 : Math.min(place, MAX_DOTS);
    this.#line.replaceChildren(...Array.from({ length: number }, (_, at) => element("i", { className: at ? "" : "own" })));
    set(this.#line, "more", place > MAX_DOTS ? "" : undefined);
  }

  /** Mark where the tube was joined again. */
  #join() {
    if (this.#tube.children.length > MAX_JOINTS) return;
    const joint = element("span", { className: "joint" });
    joint.style.setProperty("--at", this.#level);
    this.#tube.append(joint);
  }
}

/** Return how a pipe ends: "finished", "stopped" or "error". */
export function endOf(reason) {
  if (FINISHED.includes(reason)) return "finished";
  return STOPPED.includes(reason) ? "stopped" : "error";
}

/** Set or remove a data attribute, and leave it alone if it is so already: styles are computed for each change. */
function set(node, name, value) {
  if (node.dataset[name] === value) return;
  if (value === undefined) delete node.dataset[name];
  else node.dataset[name] = value;
}
