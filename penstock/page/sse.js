// Server-Sent Events, from bytes to events: written from the text of the standard.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
//
// In: the bytes of a body, cut anywhere. Out: its events, in order. Not known here: fetch, JSON, tokens.
// EventSource itself cannot be used: it knows neither POST nor a request body, and nothing of statuses.

/** Feed it every chunk of one body; an event that its blank line never ended is no event. */
export class EventParser {
  #decoder = new TextDecoder(); // holds back half a character, and drops one leading BOM
  #afterCR = false; // the last chunk ended in \r: a \n that comes next belongs to it
  #line = "";
  #data = "";
  #type = "";
  #lastEventId = "";
  retryMs = null; // how long the server asks to wait before another connection, if it does

  /**
   * @param {Uint8Array} bytes
   * @returns {{type: string, data: string, lastEventId: string}[]} the events these bytes completed
   */
  feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return [];
    if (this.#afterCR && text.startsWith("\n")) text = text.slice(1);
    // A \r ends its line at once: waiting for a \n that may never come would delay the event.
    this.#afterCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\n|\r/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    return lines.map((line) => this.#take(line)).filter((event) => event !== null);
  }

  #take(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return null; // a comment, such as a ping
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data += value + "\n";
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#lastEventId = value;
    else if (field === "retry" && /^\d{1,15}$/.test(value)) this.retryMs = Number(value);
    return null; // any other field is ignored
  }

  #dispatch() {
    const [data, type] = [this.#data, this.#type || "message"];
    this.#data = this.#type = "";
    if (data === "") return null;
    return { type, data: data.slice(0, -1), lastEventId: this.#lastEventId };
  }
}
