// One stream of the live view: a row with its pipe. In: the fields of a stream (docs/live.md). Out: a table row,
// which says nothing but Text nodes. Not known here: the other rows, HTTP.
import { confirmed } from "./buttons.js";
import { inRate } from "./endings.js";
import { element } from "./nodes.js";
import { endOf, Pipe } from "./pipe.js";

const MANY_TOKENS = 400; // without a token limit, the tube is nearly full after so many

export class Row {
  #pipe = new Pipe();
  #words = element("span", { className: "words" });
  #also = element("span", { className: "also" }); // on a narrow screen: what has no column there
  #cells;
  #isCancelled = false;

  /** `cancel(id)` asks the server to end the stream, and returns why it did not, or "". */
  constructor(stream, cancel) {
    this.stream = stream;
    const { id, key = "" } = stream;
    const name = id.slice(0, 8);
    this.#pipe.node.setAttribute("aria-hidden", "true"); // the words beside it say the same
    this.#cells = Array.from({ length: 4 }, () => element("td"));
    const [age, tokens, rate, lag] = this.#cells;
    age.className = rate.className = lag.className = "wide";
    const life = element("div", { className: "life" }, element("code", { textContent: name, title: id }), this.#words, this.#also);
    this.button = confirmed("Cancel", () => this.#cancel(cancel), `Cancel stream ${name}`);
    this.node = element("tr", {},
      element("td", {}, this.#pipe.node, life),
      element("td", { className: "wide key", textContent: key || "–", title: key }),
      age, tokens, rate, lag,
      element("td", {}, this.button));
  }

  /** Show the stream as it is now; `now` is the server's time in seconds. */
  show(stream, now) {
    this.stream = stream;
    const { state, tokens = 0, max_tokens: limit = 0, rate = 0, lag = 0, lag_bytes: bytes = 0 } = stream;
    this.node.dataset.state = isOver(stream) ? "ended" : state;
    this.node.dataset.tone = toneOf(stream);
    const seconds = Math.max(0, now - stream.since);
    this.#pipe.fill(limit ? Math.min(1, tokens / limit) : 1 - Math.exp((-2.5 * tokens) / MANY_TOKENS));
    this.#pipe.show(lifeOf(stream, seconds));
    write(this.#words, wordsOf(stream, seconds));
    const behind = lag ? `${lag} · ${inBytes(bytes)}` : "0";
    const age = inTime((isOver(stream) ? stream.since : now) - stream.opened);
    [age, String(tokens), isOver(stream) ? "–" : inRate(rate), behind].forEach((text, at) => write(this.#cells[at], text));
    write(this.#also, [stream.key, age, rate && `${inRate(rate)}/s`, lag && `${behind} behind`].filter(Boolean).join(" · "));
    this.button.hidden = isOver(stream) || this.#isCancelled;
  }

  /** Whether the row belongs to a choice of the filter, and its id or key has the text. */
  matches(choice, text) {
    const { id, key = "", model = "" } = this.stream;
    const found = text === "" || [id, key, model].some((each) => each.toLowerCase().includes(text));
    return found && (choice === "all" || groupOf(this.stream) === choice);
  }

  async #cancel(cancel) {
    this.#isCancelled = true;
    this.button.hidden = true;
    const why = await cancel(this.stream.id);
    if (why === "") return;
    this.#isCancelled = false;
    this.button.hidden = false;
    this.button.after(element("span", { className: "error", role: "alert", textContent: why }));
  }
}

const isOver = ({ state }) => state === "ended" || state === "moved";

function groupOf(stream) {
  if (isOver(stream)) return "ended";
  if (["queued", "prefill"].includes(stream.state)) return "waiting";
  return ["running", "resumed"].includes(stream.state) ? "flowing" : "trouble";
}

function toneOf(stream) {
  if (isOver(stream)) return endOf(stream.state === "moved" ? "moved" : stream.reason) === "error" ? "bad" : "";
  return groupOf(stream) === "trouble" ? "warn" : "";
}

/** Return the state for the pipe (pipe.js). */
function lifeOf({ state, place, eta, tokens = 0, rate = 0, reason }, seconds) {
  switch (state) {
    case "queued":
      return { kind: "queued", place, seconds: eta };
    case "prefill":
      return { kind: "prefill" };
    case "running":
      return { kind: "flowing", rate };
    case "stalled":
      return { kind: "stalled", seconds };
    case "restarting":
    case "waiting":
    case "continuing":
      return { kind: "restarting", kept: tokens };
    case "moved":
      return { kind: "ended", reason: "moved" };
    case "ended":
      return { kind: "ended", reason };
    default:
      return { kind: state, rate };
  }
}

const keeps = (tokens) => `, ${tokens} ${tokens === 1 ? "token" : "tokens"} kept`;

function wordsOf({ state, place, eta, tokens = 0, resumes = 0, reason }, seconds) {
  const times = resumes ? ` · resumed ${resumes === 1 ? "once" : `${resumes} times`}` : "";
  switch (state) {
    case "queued":
      return `waiting${place ? `, place ${place}` : ""}${eta == null ? "" : `, about ${inTime(eta)} left`}`;
    case "prefill":
      return `prompt is being read, ${inTime(seconds)}`;
    case "running":
      return `running${times}`;
    case "stalled":
      return `no token for ${inTime(seconds)}${times}`;
    case "cut":
      return `nobody reads it, for ${inTime(seconds)}${times}`;
    case "restarting":
      return `engine restarting${keeps(tokens)}`;
    case "waiting":
      return `waiting for an upstream${keeps(tokens)}`;
    case "continuing":
      return `continuing at another upstream${keeps(tokens)}`;
    case "moved":
      return "continues at another server";
    case "ended":
      return `ended: ${reason}${times}`;
    default:
      return `a reader is back${times}`;
  }
}

/** Return a time as people say it: "4 s", "3:05", "1:02:07". */
export function inTime(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const parts = s < 3600 ? [Math.floor(s / 60), s % 60] : [Math.floor(s / 3600), Math.floor(s / 60) % 60, s % 60];
  return parts.map((part, at) => (at ? String(part).padStart(2, "0") : part)).join(":");
}

const inBytes = (n) => (n < 1000 ? `${n} B` : n < 1e6 ? `${(n / 1000).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`);

/** Change a text only if it is another one. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
