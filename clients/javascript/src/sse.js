// A parser for Server-Sent Events, written from the text of the standard.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
//
// In: the bytes of a body, split anywhere. Out: its events, in order. Not known here: fetch, JSON,
// tokens. EventSource does not fit: it cannot send a POST and does not report the status.
import { UnexpectedAnswerError } from "./errors.js";

const MAX_CHARACTERS = 1024 * 1024; // of a line, and of the data of an event

/** @typedef {{type: string | null, data: string, lastEventId: string}} ServerSentEvent The type of a comment is null. */

/** Parses the chunks of one body. An event counts only once its blank line has arrived. */
export class EventParser {
  #decoder = new TextDecoder(); // holds back half a character, and drops one leading BOM
  #afterCR = false; // the last chunk ended in \r, so a leading \n belongs to that line break
  #line = "";
  #data = "";
  #type = "";
  #lastEventId = "";
  /** @type {number | null} */
  retryMs = null; // the wait before a new connection, if the server sets it

  /** Return the events that these bytes complete, and the comments between them. Throws UnexpectedAnswerError for more than 1 MiB in one.
   * @param {Uint8Array} bytes
   */
  feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    /** @type {ServerSentEvent[]} */
    const events = [];
    if (text === "") return events;
    if (this.#afterCR && text.startsWith("\n")) text = text.slice(1);
    // A \r ends the line at once: waiting for a \n that may never arrive would delay the event.
    this.#afterCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\n|\r/);
    lines[0] = this.#line + lines[0];
    this.#line = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      const event = this.#take(line);
      if (event !== null) events.push(event);
    }
    if (this.#line.length > MAX_CHARACTERS || this.#data.length > MAX_CHARACTERS) {
      throw new UnexpectedAnswerError("The stream contains an event of more than 1 MiB.");
    }
    return events;
  }

  /**
   * @param {string} line
   * @returns {ServerSentEvent | null}
   */
  #take(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return { type: null, data: line.slice(1), lastEventId: "" };
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data += value + "\n";
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#lastEventId = value;
    else if (field === "retry" && /^\d{1,15}$/.test(value)) this.retryMs = Number(value);
    return null; // the standard ignores any other field
  }

  #dispatch() {
    const [data, type] = [this.#data, this.#type || "message"];
    this.#data = this.#type = "";
    if (data === "") return null;
    return { type, data: data.slice(0, -1), lastEventId: this.#lastEventId };
  }
}
