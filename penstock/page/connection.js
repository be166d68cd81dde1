// One connection that brings events. In: what to ask. Out: the head of the response, then its events.
// A server that falls silent looks like one whose connection is lost, for it sends heartbeats. Not
// known here: streams, tokens, what to do next.
import { EventParser } from "./sse.js";

const SILENCE_MS = 45_000; // three heartbeats that did not come

export class Connection {
  #abort = new AbortController();
  #timer = null;
  #parser = new EventParser();

  /** The response, as soon as its head is here. `limit` is how many milliseconds that may take. */
  async ask(url, options, limit = null) {
    if (limit !== null) this.#expectWithin(limit);
    const response = await fetch(url, { ...options, cache: "no-store", signal: this.#abort.signal });
    clearTimeout(this.#timer);
    return response;
  }

  /** The events of a response. They just end where its body ends. */
  async *events(response) {
    const reader = response.body.getReader();
    try {
      for (;;) {
        this.#expectWithin(SILENCE_MS);
        const { value, done } = await reader.read();
        if (done) return;
        yield* this.#parser.feed(value);
      }
    } finally {
      clearTimeout(this.#timer);
    }
  }

  /** The milliseconds the server asks to wait before another connection, null if it does not. */
  get retryMs() {
    return this.#parser.retryMs;
  }

  /** Hang up: whoever waits for this connection learns that it is lost. */
  close() {
    clearTimeout(this.#timer);
    this.#abort.abort();
  }

  #expectWithin(milliseconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#abort.abort(), milliseconds);
  }
}
