// An answer that arrives while the model generates it, over one or several connections. In: a request, or
// the id of a stream. Out: its deltas, in order, none twice; then its end or an error. Not known here:
// what a delta is (dialects.js), how bytes become events (sse.js), how long to wait (resume.js).
import { Connection, pathOf } from "./connection.js";
import { CutStreamError, FailedStreamError, LostEventError, PenstockError, RefusedError, ServerUnreachableError } from "./errors.js";
import { meaningOf, Patience } from "./resume.js";
import { expect, parsed } from "./responses.js";
import { pause, retried } from "./retry.js";

const SILENCE_MS = 45_000; // three missed heartbeats of a resumable stream
const [MIN_ATTEMPT_MS, MAX_ATTEMPT_MS] = [1000, 10_000]; // for the response to an attempt to resume
const QUICK_CANCEL_MS = 2000; // to cancel a stream that the caller leaves

/**
 * @typedef {object} Origin Where a stream comes from: a `request`, or the `id` of one that exists.
 * @property {import("./connection.js").Request | null} request
 * @property {string | null} id
 * @property {number | null} after the number of the last event that the caller has
 * @property {boolean} resumable
 */

/** @template Delta */
export class Stream {
  /** @type {string | null} */
  id;
  text = "";
  numResumes = 0;
  /** @type {number | null} */
  lastEventId;
  /** @type {string | null} */
  finishReason = null;
  /** @type {import("../index.d.ts").Usage | null} */
  usage = null;
  /** @type {import("../index.d.ts").Timings | null} */
  timings = null;

  #settings;
  #dialect;
  #origin;
  /** @type {import("../index.d.ts").NewStreamOptions} */
  #hooks;
  #read;
  #patience;
  #connection;
  #numDeltas = 0;
  #due; // the number of the next event
  #hasBegun = false;
  #hasEnded = false; // the terminal event is known
  #isLost = false; // no server can cancel it
  #waking = new AbortController(); // ends the current wait
  #closing = new AbortController();
  /** @type {Promise<void> | null} */
  #leaving = null;
  #headArrived = () => {};
  /** @type {Promise<void>} */
  #head = new Promise((resolve) => (this.#headArrived = resolve));

  /**
   * @param {import("./penstock.js").Settings} settings
   * @param {import("./dialects.js").Dialect<Delta>} dialect
   * @param {Origin} origin
   * @param {import("../index.d.ts").NewStreamOptions} hooks
   */
  constructor(settings, dialect, origin, hooks) {
    this.#settings = settings;
    this.#dialect = dialect;
    this.#origin = origin;
    this.#hooks = hooks;
    this.#read = dialect.reader();
    this.#patience = new Patience({ limit: settings.resumeTimeout, backoff: settings.backoff });
    this.#connection = new Connection(settings.server);
    this.id = origin.id;
    this.lastEventId = origin.after;
    this.#due = origin.after === null ? 0 : origin.after + 1;
  }

  /** Send the request and yield the deltas until the end. Leaving the loop ends the generation. */
  async *[Symbol.asyncIterator]() {
    if (this.#hasBegun) throw new TypeError("A stream can be read only once.");
    this.#hasBegun = true;
    const { signal } = this.#hooks;
    const close = () => this.close();
    signal?.addEventListener("abort", close);
    try {
      yield* this.#deltas();
    } catch (error) {
      this.#checkOpen(); // a stream that was closed has no other error
      throw error;
    } finally {
      signal?.removeEventListener("abort", close);
      this.#headArrived(); // if none did
      await this.#leave();
    }
  }

  /** Cancel the generation; the stream goes on to its end. One that has not begun is closed. */
  async cancel() {
    if (!this.#hasBegun) return this.close();
    await this.#head;
    if (this.id === null || this.#hasEnded) return;
    await this.#settings.server.cancel(this.id, this.#settings.timeout);
    this.#waking.abort(); // between two connections: fetch the end at once
  }

  /** Leave the stream. If it is this client's own, this ends the generation. */
  close() {
    this.#closing.abort();
    this.#connection.close();
    this.#waking.abort();
    void this.#leave();
  }

  async *#deltas() {
    this.#checkOpen();
    await this.#begin();
    this.#headArrived();
    while (!this.#hasEnded) {
      const events = await this.#connection.read(this.#silenceMs);
      this.#checkOpen();
      if (events === null) await this.#resume(this.#connection.why);
      for (const event of events ?? []) {
        const delta = this.#take(event);
        if (delta !== undefined) yield delta;
        if (this.#hasEnded) break;
        this.#checkOpen();
      }
    }
    void this.#connection.finish();
  }

  /** Make the first connection. */
  async #begin() {
    if (this.#origin.request !== null) {
      await retried(() => this.#open(), { ...this.#settings, pause: (ms) => this.#wait(ms) });
      return;
    }
    try {
      await this.#open();
    } catch (error) {
      // The stream exists, so a server that is away is waited for, as after a cut.
      const isAway = error instanceof RefusedError && meaningOf(error.status) === "later";
      if (!isAway && !(error instanceof ServerUnreachableError)) throw error;
      await this.#resume(error.message, isAway ? error.retryAfterMs ?? 0 : 0);
    }
  }

  async #open() {
    const { request, id } = this.#origin;
    const { timeout } = this.#settings;
    const response = await (request ? this.#ask(this.#dialect.path, request, timeout) : this.#askForRest(timeout));
    if (response.status === 204 && id !== null) {
      this.#hasEnded = true; // the caller has everything
      return;
    }
    await this.#connection.whole(() => expect(response, "text/event-stream"), timeout);
    this.id ??= response.headers.get("X-Stream-ID");
    if (this.id !== null) this.#hooks.onBegin?.(this.id);
  }

  /** Continue over a new connection. Throws CutStreamError if that is impossible.
   * @param {string} why
   * @param {number} [atLeast] milliseconds before the first attempt
   */
  async #resume(why, atLeast) {
    if (!this.#origin.resumable || this.id === null) throw this.#cut(why);
    this.#patience.firstMs = this.#connection.retryMs;
    let wait = this.#patience.wait(atLeast);
    this.#hooks.onCut?.(why);
    /** @type {unknown} */
    let error = null;
    while (wait !== null) {
      await this.#wait(wait);
      this.#checkOpen();
      error = await this.#reconnect();
      this.#checkOpen();
      if (error === null) {
        this.#hooks.onResume?.();
        return;
      }
      wait = this.#patience.wait(this.#retryAfter(why, error));
    }
    const last = error instanceof PenstockError ? ` ${error.message}` : "";
    throw this.#giveUp(`${why} It could not be resumed in ${this.#settings.resumeTimeout / 1000} s.${last}`, error);
  }

  /** Make another connection. Return the error if that fails. */
  async #reconnect() {
    const limit = Math.min(Math.max(this.#patience.leftMs, MIN_ATTEMPT_MS), MAX_ATTEMPT_MS);
    this.#connection.close();
    try {
      const response = await this.#askForRest(limit);
      await this.#connection.whole(() => expect(response, "text/event-stream"), limit);
    } catch (error) {
      return error;
    }
    this.#patience.resumed();
    this.numResumes += 1;
    return null;
  }

  /** Return the milliseconds that the next attempt must wait. Throws CutStreamError if none can help.
   * @param {string} why
   * @param {unknown} error
   */
  #retryAfter(why, error) {
    if (error instanceof ServerUnreachableError || error instanceof CutStreamError) return 0;
    const meaning = error instanceof RefusedError ? meaningOf(error.status) : "no";
    if (error instanceof RefusedError && meaning === "later") return error.retryAfterMs ?? 0;
    const reason = error instanceof Error ? error.message : String(error);
    const outcome = meaning === "forgotten" ? "The server no longer has the rest" : "The stream cannot be resumed";
    throw this.#giveUp(`${why} ${outcome}: ${reason}`, error);
  }

  /** Return the delta of an event. The event must have the next number, so that none is lost or repeated.
   * @param {import("./sse.js").ServerSentEvent} event
   */
  #take({ type, data, lastEventId }) {
    if (type === null) return this.#hear(data);
    if (type === "queue") return void this.#hooks.onQueue?.(parsed(data));
    if (type === "status") return void this.#hooks.onStatus?.(parsed(data));
    if (type !== "message") return undefined;
    const { delta, index, ending } = this.#read(data);
    const due = this.#due;
    const number = this.#origin.resumable && lastEventId !== "" ? numberIn(lastEventId) : due;
    if ((index ?? due) !== due || number !== due) {
      const what = `Event ${number === due ? index : number} arrived instead of event ${due}.`;
      throw new LostEventError(`A part of the answer was lost on the way. ${what}`, this.#received());
    }
    this.lastEventId = due;
    this.#due += 1;
    this.#patience.progressed();
    if (ending !== undefined) return this.#end(ending);
    if (delta === undefined) return undefined;
    this.#numDeltas += 1;
    this.text += this.#dialect.textOf(delta);
    return delta === "" ? undefined : delta;
  }

  /** @param {import("./dialects.js").Ending | null} ending */
  #end(ending) {
    this.#hasEnded = true;
    if (ending === null) throw this.#cut("The answer ended without a reason.");
    this.finishReason = ending.finishReason;
    this.usage = ending.usage ?? null;
    this.timings = ending.timings ?? null;
    if (ending.failure) throw new FailedStreamError(ending.failure, this.#received());
    return undefined;
  }

  /** Read a comment: a chat tells its place in the queue, and what happens to it, in comments.
   * @param {string} comment
   */
  #hear(comment) {
    const place = /^ queue position=(\d+)(?: eta=([\d.]+))?/.exec(comment);
    if (place) this.#hooks.onQueue?.({ position: Number(place[1]), eta: place[2] === undefined ? null : Number(place[2]) });
    if (comment.startsWith(" status {")) this.#hooks.onStatus?.(parsed(comment.slice(" status ".length)));
    return undefined;
  }

  /**
   * @param {string} path
   * @param {import("./connection.js").Request} init
   * @param {number | null} limitMs
   */
  async #ask(path, init, limitMs) {
    this.#checkOpen();
    this.#connection = new Connection(this.#settings.server);
    const headers = { ...init.headers, ...(this.#hooks.onStatus && { "X-Penstock-Status": "true" }) };
    return await this.#connection.open(path, { ...init, headers }, limitMs);
  }

  /** @param {number | null} limitMs */
  #askForRest(limitMs) {
    const headers = { Accept: "text/event-stream", ...(this.#due > 0 && { "Last-Event-ID": String(this.#due - 1) }) };
    return this.#ask(pathOf(/** @type {string} */ (this.id)), { headers }, limitMs);
  }

  get #silenceMs() {
    const { timeout } = this.#settings;
    return this.#origin.resumable ? Math.min(timeout ?? SILENCE_MS, SILENCE_MS) : timeout;
  }

  /** @param {number} milliseconds */
  async #wait(milliseconds) {
    this.#checkOpen();
    this.#waking = new AbortController();
    await pause(milliseconds, this.#waking.signal);
  }

  #leave() {
    this.#closing.abort();
    return (this.#leaving ??= this.#endGeneration());
  }

  /** Close the connection. A resumable stream would go on without it, so cancel it. */
  async #endGeneration() {
    if (this.#hasEnded) return;
    this.#connection.close();
    const isOwn = this.#origin.request !== null;
    if (!isOwn || !this.#origin.resumable || this.id === null || this.#isLost) return;
    await this.#settings.server.cancel(this.id, QUICK_CANCEL_MS).catch(() => {}); // it ends after its linger
  }

  #checkOpen() {
    this.#hooks.signal?.throwIfAborted();
    if (this.#closing.signal.aborted) throw new PenstockError("This stream was closed before its end.");
  }

  #received() {
    return { text: this.text, numDeltas: this.#numDeltas, usage: this.usage, timings: this.timings };
  }

  /**
   * @param {string} why
   * @param {unknown} [cause]
   */
  #cut(why, cause) {
    return new CutStreamError(why, { ...this.#received(), cause });
  }

  /**
   * @param {string} why
   * @param {unknown} cause
   */
  #giveUp(why, cause) {
    this.#isLost = true;
    return this.#cut(why, cause ?? undefined);
  }
}

/** Return the number in an event's id, which is `STREAM.N`.
 * @param {string} eventId
 */
function numberIn(eventId) {
  const number = eventId.slice(eventId.lastIndexOf(".") + 1);
  return /^\d{1,15}$/.test(number) ? Number(number) : NaN;
}
