// A connection that delivers events. In: a request. Out: the head of the response, then its events. The
// server sends heartbeats, so 45 seconds of silence count as a lost connection. Not known here:
// streams, tokens, how to resume.
import { EventParser } from "./sse.js";

const SILENCE_MS = 45_000; // three missed heartbeats

export class Connection {
  #abort = new AbortController();
  #timer = null;
  #parser;

  /** `queued` is called with `{position, eta}` for a comment that tells the place in the queue. */
  constructor(queued = () => {}) {
    this.#parser = new EventParser((comment) => {
      const place = /^ queue position=(\d+)(?: eta=([\d.]+))?/.exec(comment);
      if (place) queued({ position: Number(place[1]), eta: place[2] === undefined ? null : Number(place[2]) });
    });
  }

  /** Return the response when its head arrives. `limit` is the time for that in milliseconds. */
  async ask(url, options, limit = null) {
    if (limit !== null) this.#expectWithin(limit);
    const response = await fetch(url, { ...options, cache: "no-store", signal: this.#abort.signal });
    clearTimeout(this.#timer);
    return response;
  }

  /** Yield the events of a response until its body ends. */
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

  /** The milliseconds that the server asks to wait before a new connection, or null. */
  get retryMs() {
    return this.#parser.retryMs;
  }

  /** Close the connection. Pending reads throw. */
  close() {
    clearTimeout(this.#timer);
    this.#abort.abort();
  }

  #expectWithin(milliseconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#abort.abort(), milliseconds);
  }
}
