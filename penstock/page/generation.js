// One generation, spoken over the native API. In: the fields of a request, or the id of a stream. Out:
// its deltas, and how it ended. Not known here: the page. Every URL is relative, so the page works
// under any host and path.
//
// A stream is resumable: when its connection is cut it goes on over another one, until its terminal
// event or the end of our patience. An ending is a value, one of
//   {kind: "finish",  reason, usage, timings}              the terminal event, or a whole answer
//   {kind: "failure", message, usage, timings}             the terminal event `error`
//   {kind: "refused", message, fields, needsKey}           an answer that is not a stream
//   {kind: "lost", message}                                cut and not resumed; the server's words, if any
//   {kind: "forgotten"}                                    the server no longer has the stream
//   {kind: "unreachable"}                                  no answer at all
//   {kind: "stopped"}                                      we hung up, unconfirmed by the server
import { Connection } from "./connection.js";
import { meaningOf, Patience, retryAfter } from "./resume.js";

const STOP_MS = 2000; // how long a stop may take before we hang up instead
const ATTEMPT_MS = 10_000; // how long a server may take to answer a stream that comes back

/** Lives for one request: `stream` or `whole` once, `stop` at any time. */
export class Generation {
  #fields;
  #key; // headers that hold the API key, where there is one
  #id; // of the stream, once the server has named it
  #due = 0; // the number of the event that comes next
  #connection = new Connection();
  #patience = new Patience();
  #isCut = false;
  #hungUp = false;
  #stopTimer = null;
  #wake = () => {};
  #endsWithConnection = true; // as a whole answer does: the server cancels what nobody reads
  stopAsked = false;
  numResumes = 0;

  /**
   * What these fields ask for; or, with an id, that stream from its start. `key` is the API key, or ""
   * where the server asks for none. It goes into a header, never into a URL.
   */
  constructor(fields, id = null, key = "") {
    this.#fields = fields;
    this.#id = id;
    this.#key = key === "" ? {} : { Authorization: `Bearer ${key}` };
  }

  /**
   * Return the ending, and tell `heard` what happens until then: `began(id)`, `delta(text)` for each
   * delta as it arrives, `waits({position, eta})` now and then while it waits in line (`eta` in seconds,
   * or null), `cut()` when there is no connection, `resumed()` when there is again.
   */
  async stream(heard) {
    this.#endsWithConnection = false;
    for (;;) {
      const ending = await this.#listen(heard);
      if (ending.kind !== "cut") return this.#over(ending);
      const wait = this.#patience.wait(ending.atLeast);
      if (wait === null) return this.#over({ kind: "lost", message: ending.message });
      if (!this.#isCut) heard.cut();
      this.#isCut = true;
      await this.#pause(wait);
      if (this.#hungUp) return this.#over({ kind: "stopped" });
    }
  }

  /** Return the ending of a whole answer, with its `text`. */
  async whole() {
    let response = null;
    try {
      response = await this.#post({ stream: false });
      if (!isA("application/json", response)) return this.#over(await refusal(response));
      const { text, usage, request_time, finish_reason: reason, timings } = await response.json();
      return this.#over({ kind: "finish", reason, text, usage, timings: timings ?? { total_time: request_time } });
    } catch (error) {
      return this.#over(this.#broken(error, response));
    }
  }

  /** End it. The server's terminal event then says so; if that does not come soon, hang up. */
  async stop() {
    if (this.stopAsked) return;
    this.stopAsked = true;
    if (this.#endsWithConnection) return this.#hangUp();
    this.#stopTimer = setTimeout(() => this.#hangUp(), STOP_MS);
    if (this.#id !== null) await this.#cancel(); // else as soon as it has a name
  }

  /** One connection: its ending, which is "cut" where the stream can go on over another. */
  async #listen(heard) {
    const connection = (this.#connection = new Connection());
    let response = null;
    try {
      response = await (this.#id === null ? this.#post({ stream: true, resumable: true, queue_events: true }) : this.#rest());
      if (!isA("text/event-stream", response)) return await this.#refused(response);
      this.#goOn(response, heard);
      for await (const event of connection.events(response)) {
        const ending = this.#take(event, heard);
        if (ending !== null) return ending;
      }
      return this.#broken(null, response);
    } catch (error) {
      return this.#broken(error, response);
    } finally {
      this.#patience.firstMs = connection.retryMs ?? this.#patience.firstMs;
    }
  }

  /** The head of a stream is here, for the first time or again. */
  #goOn(response, heard) {
    if (this.#id === null) {
      this.#id = response.headers.get("X-Stream-ID");
      if (this.#id !== null) heard.began(this.#id);
      if (this.stopAsked) this.#cancel();
    }
    this.#patience.resumed();
    if (!this.#isCut) return;
    this.#isCut = false;
    this.numResumes += 1;
    heard.resumed();
  }

  /** An event is here. Its number must be the one that is due: none is lost, none is shown twice. */
  #take({ type, data, lastEventId }, heard) {
    const event = JSON.parse(data);
    if (type === "queue") {
      heard.waits(event);
      return null;
    }
    const due = this.#due;
    if ((event.index ?? due) !== due || ![String(due), ""].includes(lastEventId)) {
      this.#cancel();
      return { kind: "failure", message: GAP };
    }
    if (event.finished) return endingOf(event);
    this.#due += 1;
    this.#patience.progressed();
    heard.delta(event.token);
    return null;
  }

  #post(how) {
    return this.#connection.ask("generate", {
      method: "POST",
      headers: { ...this.#key, "Content-Type": "application/json" },
      body: JSON.stringify({ ...this.#fields, ...how }),
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
      // 404: it ended by itself meanwhile, and its terminal event is on its way.
      if (!answer.ok && answer.status !== 404) this.#hangUp();
    } catch {
      this.#hangUp();
    }
    this.#wake(); // where there is no connection: go and fetch the terminal event
  }

  #hangUp() {
    this.#hungUp = true;
    this.#connection.close();
    this.#wake();
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, milliseconds);
    });
  }

  #over(ending) {
    clearTimeout(this.#stopTimer);
    return ending;
  }

  /** What it means that a connection ended, or could not be made. */
  #broken(error, response) {
    if (this.#hungUp) return { kind: "stopped" };
    this.#connection.close(); // leave nothing open behind us
    if (error instanceof SyntaxError) return { kind: "failure", message: GIBBERISH };
    if (this.#id !== null) return { kind: "cut" };
    return { kind: response === null ? "unreachable" : "lost" };
  }

  /** What an answer without the stream means. */
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

const GIBBERISH = "The server sent something that this page does not understand.";
const GAP = "A part of the answer was lost on the way.";

function isA(type, response) {
  return response.status === 200 && (response.headers.get("Content-Type") ?? "").startsWith(type);
}

function endingOf({ finish_reason: reason, error, usage, timings }) {
  if (reason !== "error") return { kind: "finish", reason, usage, timings };
  return { kind: "failure", message: error.message, usage, timings };
}

/** The server's own sentence, where it gave one: problem details, RFC 9457. */
async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  const message =
    problem.detail ?? problem.title ?? `The server answered ${response.status}, without a reason.`;
  return { kind: "refused", message, fields: problem.errors ?? [], needsKey: response.status === 401 };
}
