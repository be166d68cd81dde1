// One generation, spoken over the native API. In: the fields of a request. Out: its deltas, and how
// it ended. Not known here: the page. Every URL is relative, so the page works under any host and path.
//
// An ending is a value, one of
//   {kind: "finish",  reason, usage, timings}              the terminal event, or a whole answer
//   {kind: "failure", message, usage, timings}             the terminal event `error`
//   {kind: "refused", message, fields}                     an answer that is not a stream
//   {kind: "lost"}                                         the body ended without a terminal event
//   {kind: "unreachable"}                                  no answer at all
//   {kind: "stopped"}                                      we hung up, unconfirmed by the server
import { EventParser } from "./sse.js";

const PATIENCE_MS = 2000; // how long a stop may take before we hang up instead

/** Lives for one request: `stream` or `whole` once, `stop` at any time. */
export class Generation {
  #fields;
  #abort = new AbortController(); // hanging up is a stop too: the server cancels what nobody reads
  #id = null;
  #patience = null;
  stopAsked = false;

  constructor(fields) {
    this.#fields = fields;
  }

  /** Call `onDelta(text)` for each delta as it arrives, and return the ending. */
  stream(onDelta) {
    return this.#ask(true, async (response) => {
      this.#id = response.headers.get("X-Stream-ID");
      const parser = new EventParser();
      const reader = response.body.getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return { kind: "lost" };
        for (const { data } of parser.feed(value)) {
          const event = JSON.parse(data);
          if (event.finished) return endingOf(event);
          onDelta(event.token);
        }
      }
    });
  }

  /** Return the ending of a whole answer, with its `text`. */
  whole() {
    return this.#ask(false, async (response) => {
      const { text, usage, request_time, finish_reason: reason, timings } = await response.json();
      return { kind: "finish", reason, text, usage, timings: timings ?? { total_time: request_time } };
    });
  }

  /** End it. The server's terminal event then says so; if that does not come soon, hang up. */
  async stop() {
    if (this.stopAsked) return;
    this.stopAsked = true;
    if (this.#id === null) return this.#abort.abort();
    this.#patience = setTimeout(() => this.#abort.abort(), PATIENCE_MS);
    try {
      const answer = await fetch(`streams/${encodeURIComponent(this.#id)}`, { method: "DELETE" });
      // 404: it ended by itself meanwhile, and its terminal event is on its way.
      if (!answer.ok && answer.status !== 404) this.#abort.abort();
    } catch {
      this.#abort.abort();
    }
  }

  async #ask(stream, read) {
    let response = null;
    try {
      response = await fetch("generate", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...this.#fields, stream }),
        cache: "no-store",
        signal: this.#abort.signal,
      });
      const type = response.headers.get("Content-Type") ?? "";
      const expected = stream ? "text/event-stream" : "application/json";
      if (!response.ok || !type.startsWith(expected)) return await refusal(response);
      return await read(response);
    } catch (error) {
      if (this.#abort.signal.aborted) return { kind: "stopped" };
      this.#abort.abort(); // leave no connection open behind us
      if (error instanceof SyntaxError) return { kind: "failure", message: GIBBERISH };
      return { kind: response === null ? "unreachable" : "lost" };
    } finally {
      clearTimeout(this.#patience);
    }
  }
}

const GIBBERISH = "The server sent something that this page does not understand.";

function endingOf({ finish_reason: reason, error, usage, timings }) {
  if (reason !== "error") return { kind: "finish", reason, usage, timings };
  return { kind: "failure", message: error.message, usage, timings };
}

/** The server's own sentence, where it gave one: problem details, RFC 9457. */
async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  const message =
    problem.detail ?? problem.title ?? `The server answered ${response.status}, without a reason.`;
  return { kind: "refused", message, fields: problem.errors ?? [] };
}
