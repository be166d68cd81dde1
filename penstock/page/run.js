// An answer that runs: its text goes into a turn. In: a turn, and the fields of a request, or
// nothing to follow the turn's stream. Out: the turn, brought up to date; calls that tell what is new. Not known
// here: the DOM, where turns are kept.
import { Answer } from "./answer.js";
import { describe, inMilliseconds, inRate, placed, resumed } from "./endings.js";
import { describeStatus, kept, restarted } from "./status.js";

const MIN_RATE_TOKENS = 10; // a rate of fewer tokens means nothing

/**
 * A run. `listener` has `began()` (the turn's stream has an id), `grew(part, piece)` with "text", "reasoning"
 * or "calls", `changed(state, sentence, life)` with the state for the pipe (pipe.js), and `ended(ending)`, and if
 * it likes `onStatus(status)`.
 */
export class Run {
  state = "waiting";
  sentence = "Waiting for the first token…";
  life = { kind: "prefill" };
  numTokens = 0;
  #answer;
  #open; // opens the stream at a client
  #listener;
  #isReplay;
  #known; // so many characters of this stream the turn has already, by part
  #hasCalls = false;
  #numRestarts = 0; // of the engine
  #isHeld = false; // true while a status says why no tokens come
  #begin = performance.now();
  #first = null;
  #last = null;

  constructor(turn, fields, key, listener) {
    this.turn = turn;
    this.#listener = listener;
    this.#isReplay = fields === null;
    this.#known = { text: turn.text.length - turn.prefix.length, reasoning: this.#isReplay ? turn.reasoning.length : 0 };
    const hooks = {
      onBegin: (id) => {
        turn.stream = id;
        listener.began();
      },
      onQueue: (place) => this.#change("waiting", placed(place), { kind: "queued", place: place.position, seconds: place.eta }),
      onCut: () => this.#change("resuming", `Connection lost; resuming…${kept(this.numTokens)}`, { kind: "cut" }),
      onStatus: (status) => this.#tell(status),
      onResume: () => this.#flow("resumed"),
    };
    this.#open = (client) => (this.#isReplay ? client.resumeChat(turn.stream, hooks) : client.chat(fields, hooks));
    this.#answer = new Answer(key);
    turn.state = "open";
  }

  /** Receive the answer until its end. */
  async receive() {
    if (this.#isReplay) this.#change("waiting", "Following the answer…", { kind: "prefill" });
    const ending = await this.#answer.read(this.#open, (delta) => this.#take(delta));
    this.#end(ending);
  }

  stop() {
    if (!this.#answer.stopAsked) this.#change(this.state, "Stopping…", this.life);
    return this.#answer.stop();
  }

  #take({ content, reasoning, calls }) {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.numTokens += 1;
    if (this.numTokens === 1 || this.#isHeld) this.#flow();
    if (reasoning) this.#grow("reasoning", reasoning);
    if (content) this.#grow("text", content);
    if (calls) this.#call(calls);
  }

  /** Add what the turn does not have yet. After a reload it has the beginning. */
  #grow(part, piece) {
    const added = piece.slice(this.#known[part]);
    this.#known[part] = Math.max(0, this.#known[part] - piece.length);
    if (added === "") return;
    this.turn[part] += added;
    this.#listener.grew(part, added);
  }

  #call(parts) {
    if (!this.#hasCalls) this.turn.calls = []; // after a reload they come again
    this.#hasCalls = true;
    for (const { index, function: called } of parts) {
      const call = (this.turn.calls[index] ??= { name: "", arguments: "" });
      call.name ||= called.name ?? "";
      call.arguments += called.arguments ?? "";
    }
    this.#listener.grew("calls", "");
  }

  /** Show what happens to the stream on its way. */
  #tell(status) {
    if (status.state === "restarting") this.#numRestarts += 1;
    this.#listener.onStatus?.(status);
    const held = describeStatus(status, this.numTokens);
    const wasHeld = this.#isHeld;
    this.#isHeld = held !== null;
    if (held) this.#change(...held);
    else if (wasHeld && this.numTokens) this.#flow();
  }

  #flow(kind = "flowing") {
    this.#isHeld = false;
    const past = this.#past();
    if (this.numTokens === 0) return this.#change("waiting", `Waiting for the first token…${past}`, { kind: "prefill" });
    this.#change("streaming", `Streaming…${past}`, { kind });
  }

  /** Return what the stream has survived, as the end of a sentence. */
  #past() {
    return restarted(this.#numRestarts) + resumed(this.#answer);
  }

  #change(state, sentence, life) {
    [this.state, this.sentence, this.life] = [state, sentence, life];
    this.#listener.changed(state, sentence, life);
  }

  #end(ending) {
    const [state, sentence] = describe(ending, this.#answer.stopAsked, this.numTokens);
    // A stream that is only out of reach may be found again by a reload.
    if (ending.kind !== "lost") this.turn.stream = null;
    this.turn.state = state;
    this.turn.note = state === "finished" ? this.#figures(ending) : sentence;
    // The turn itself has the figures.
    const isWhole = state === "finished" && ending.reason !== "length";
    this.#change(state, (isWhole ? "Finished." : sentence) + this.#past(), { kind: "ended", reason: state });
    this.#listener.ended(ending);
  }

  /** Return the figures of an answer: tokens by the server's count, times as this page saw them. */
  #figures({ reason, usage }) {
    const count = usage?.completion_tokens ?? this.numTokens;
    const parts = [`${count} ${count === 1 ? "token" : "tokens"}`];
    const seconds = (this.#last - this.#first) / 1000;
    if (!this.#isReplay && this.numTokens >= MIN_RATE_TOKENS && seconds > 0) {
      parts.push(`${inRate((this.numTokens - 1) / seconds)} tokens/s`);
    }
    if (!this.#isReplay && this.#first !== null) {
      parts.push(`first after ${inMilliseconds((this.#first - this.#begin) / 1000)}`);
    }
    if (reason === "length") parts.push("token limit reached");
    return parts.join(" · ");
  }
}
