// A generation over one of the APIs in dialects.js. In: the fields of a request, or the id of a stream. Out:
// its deltas and its ending. Not known here: the page. URLs are relative, so the page works under any host
// and path.
//
// Streams are resumable: after a cut, the stream continues over a new connection until its terminal
// event, or until `Patience` gives up. An ending is one of these values:
//   {kind: "finish",  reason, usage, timings}              the terminal event, or a whole answer
//   {kind: "failure", message, usage, timings}             the terminal event `error`
//   {kind: "refused", message, fields, needsKey}           an error response
//   {kind: "lost", message}                                cut and not resumed, with the server's reason, if any
//   {kind: "forgotten"}                                    the server no longer has the stream
//   {kind: "unreachable"}                                  no response
//   {kind: "stopped"}                                      the page closed the connection; the server did not confirm
import { Connection } from "./connection.js";
import { native } from "./dialects.js";
import { meaningOf, Patience, retryAfter } from "./resume.js";

const STOP_MS = 2000; // time for a stop before the page closes the connection
const ATTEMPT_MS = 10_000; // time for the response to an attempt to resume

/** A generation. Call `stream` or `whole` once; call `stop` at any time. */
export class Generation {
  #fields;
  #key; // headers with the API key, if there is a key
  #id; // the id of the stream, once the server has sent it
  #dialect;
  #read; // what reads the data of events
  #due = 0; // the number of the next event
  #connection = new Connection();
  #patience = new Patience();
  #isCut = false;
  #isClosed = false;
  #stopTimer = null;
  #wake = () => {};
  #endsWithConnection = true; // true for `whole`: the server cancels when the client leaves
  stopAsked = false;
  numResumes = 0;

  /**
   * `fields` are those of a new request; with an `id`, the stream is read from its start instead. `key`
   * is the API key, or "" if the server needs no key. It goes into a header, never into a URL. `whole`
   * needs the native dialect.
   */
  constructor(fields, id = null, key = "", dialect = native) {
    this.#fields = fields;
    this.#dialect = dialect;
    this.#read = dialect.reader();
    this.#id = id;
    this.#key = key === "" ? {} : { Authorization: `Bearer ${key}` };
  }

  /**
   * Stream the answer and return the ending. Until then call `began(id)`, `delta(delta)` for each delta,
   * `queued({position, eta})` now and then while the request waits in the queue (`eta` in seconds, or
   * null), `cut()` when the connection is lost and `resumed()` when it is back.
   */
  async stream(callbacks) {
    this.#endsWithConnection = false;
    for (;;) {
      const ending = await this.#receive(callbacks);
      if (ending.kind !== "cut") return this.#end(ending);
      const wait = this.#patience.wait(ending.atLeast);
      if (wait === null) return this.#end({ kind: "lost", message: ending.message });
      if (!this.#isCut) callbacks.cut();
      this.#isCut = true;
      await this.#pause(wait);
      if (this.#isClosed) return this.#end({ kind: "stopped" });
    }
  }

  /** Request the whole answer at once and return the ending, with its `text`. */
  async whole() {
    let response = null;
    try {
      response = await this.#post({ ...this.#fields, stream: false });
      if (!isA("application/json", response)) return this.#end(await refusal(response));
      const { text, usage, request_time, finish_reason: reason, timings } = await response.json();
      return this.#end({ kind: "finish", reason, text, usage, timings: timings ?? { total_time: request_time } });
    } catch (error) {
      return this.#end(this.#broken(error, response));
    }
  }

  /** Ask the server to end the stream. If no terminal event arrives soon, close the connection. */
  async stop() {
    if (this.stopAsked) return;
    this.stopAsked = true;
    if (this.#endsWithConnection) return this.#close();
    this.#stopTimer = setTimeout(() => this.#close(), STOP_MS);
    if (this.#id !== null) await this.#cancel(); // otherwise as soon as the id arrives
  }

  /** Read one connection and return the ending, or "cut" if the stream can be resumed. */
  async #receive(callbacks) {
    const connection = (this.#connection = new Connection(callbacks.queued));
    let response = null;
    try {
      response = await (this.#id === null ? this.#post(this.#dialect.body(this.#fields)) : this.#rest());
      if (!isA("text/event-stream", response)) return await this.#refused(response);
      this.#connected(response, callbacks);
      for await (const event of connection.events(response)) {
        const ending = this.#take(event, callbacks);
        if (ending !== null) return ending;
      }
      return this.#broken(null, response);
    } catch (error) {
      return this.#broken(error, response);
    } finally {
      this.#patience.firstMs = connection.retryMs ?? this.#patience.firstMs;
    }
  }

  /** Handle the head of a stream, first or resumed. */
  #connected(response, callbacks) {
    if (this.#id === null) {
      this.#id = response.headers.get("X-Stream-ID");
      if (this.#id !== null) callbacks.began(this.#id);
      if (this.stopAsked) this.#cancel();
    }
    this.#patience.resumed();
    if (!this.#isCut) return;
    this.#isCut = false;
    this.numResumes += 1;
    callbacks.resumed();
  }

  /** Handle an event. It must have the next number, so that none is lost and none is shown twice. */
  #take({ type, data, lastEventId }, callbacks) {
    const { queued, delta, ending, index } = this.#read(type, data);
    if (queued) {
      callbacks.queued(queued);
      return null;
    }
    const due = this.#due;
    if ((index ?? due) !== due || ![String(due), ""].includes(numberIn(lastEventId))) {
      this.#cancel();
      return { kind: "failure", message: GAP };
    }
    if (ending !== undefined) return ending;
    this.#due += 1;
    this.#patience.progressed();
    if (delta !== undefined) callbacks.delta(delta);
    return null;
  }

  #post(body) {
    return this.#connection.ask(this.#dialect.path, {
      method: "POST",
      headers: { ...this.#key, ...this.#dialect.headers, "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  }

  #rest() {
    const headers = { ...this.#key, ...(this.#due && { "Last-Event-ID": String(this.#due - 1) }) };
    return this.#connection.ask(this.#path, { headers }, ATTEMPT_MS);
  }

  get #path() {
    return `streams/${encodeURIComponent(this.#id)}`;
  }

  async #cancel() {
    try {
      const answer = await fetch(this.#path, { method: "DELETE", headers: this.#key });
      // 404: the stream has already ended, and its terminal event is about to arrive.
      if (!answer.ok && answer.status !== 404) this.#close();
    } catch {
      this.#close();
    }
    this.#wake(); // if there is no connection, fetch the terminal event at once
  }

  #close() {
    this.#isClosed = true;
    this.#connection.close();
    this.#wake();
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, milliseconds);
    });
  }

  #end(ending) {
    clearTimeout(this.#stopTimer);
    return ending;
  }

  /** Return the ending for a connection that ended or could not be made. */
  #broken(error, response) {
    if (this.#isClosed) return { kind: "stopped" };
    this.#connection.close(); // leave nothing open
    if (error instanceof SyntaxError) return { kind: "failure", message: UNREADABLE };
    if (this.#id !== null) return { kind: "cut" };
    return { kind: response === null ? "unreachable" : "lost" };
  }

  /** Return the ending for a response that is not a stream. */
  async #refused(response) {
    const refused = await refusal(response);
    if (this.#id === null) return refused;
    const { message } = refused;
    switch (meaningOf(response.status)) {
      case "later":
        return { kind: "cut", message, atLeast: retryAfter(response.headers.get("Retry-After")) };
      case "forgotten":
        return { kind: "forgotten" };
      default:
        return { kind: "lost", message };
    }
  }
}

const UNREADABLE = "The server sent a response that this page cannot read.";
const GAP = "A part of the answer was lost on the way.";

/** Return the number in an event's id, which is `STREAM.N`. */
function numberIn(eventId) {
  return eventId.slice(eventId.lastIndexOf(".") + 1);
}

function isA(type, response) {
  return response.status === 200 && (response.headers.get("Content-Type") ?? "").startsWith(type);
}

/** Return the ending for an error response: RFC 9457's problem details, or OpenAI's error object. */
async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  const message =
    problem.error?.message ?? problem.detail ?? problem.title ?? `The server returned status ${response.status} without a reason.`;
  return { kind: "refused", message, fields: fieldsOf(problem), needsKey: response.status === 401 };
}

/** Return the fields that an error names: `[{field, message}]`. */
function fieldsOf({ errors, error }) {
  if (error?.param) return [{ field: error.param, message: error.message }];
  return errors ?? [];
}
