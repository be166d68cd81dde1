// Connections to one server. In: a request. Out: the head of the response, then its events. A connection
// that is silent for too long counts as lost. Not known here: streams, tokens, how to resume.
import { CutStreamError, ServerUnreachableError } from "./errors.js";
import { jsonOf, refusal } from "./responses.js";
import { EventParser } from "./sse.js";

const LONGEST_MS = 2 ** 31 - 1; // of a timer
const REST_MS = 1000; // for the end of a body after its last event
const ENDED_EARLY = "The connection ended before the answer did.";
/** @type {Promise<{done: true, value?: undefined}>} */
const ENDED = Promise.resolve({ done: true });

/** @typedef {{method?: string, headers?: Record<string, string>, body?: string}} Request */

/** A server: its address, and the key that goes into a header, never into a URL. */
export class Server {
  /** @type {Record<string, string>} */
  #headers;

  /** @param {{url: string, key: string | null, fetch: typeof globalThis.fetch}} about */
  constructor({ url, key, fetch }) {
    this.url = url.replace(/\/+$/, "");
    this.fetch = fetch;
    this.#headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (/[^\x20-\x7e]/.test(key ?? "")) throw new TypeError("A key has only printable ASCII characters.");
  }

  /** Return a request to this server.
   * @param {string} path
   * @param {Request} init
   * @returns {[string, RequestInit]}
   */
  request(path, { headers, ...init }) {
    return [`${this.url}/${path}`, { ...init, headers: { ...this.#headers, ...headers }, cache: "no-store" }];
  }

  /** Return the JSON of a response. `signal` ends the request.
   * @param {string} path
   * @param {Request} init
   * @param {number | null} limitMs
   * @param {AbortSignal} [signal]
   */
  async json(path, init, limitMs, signal) {
    signal?.throwIfAborted();
    const connection = new Connection(this);
    const close = () => connection.close();
    signal?.addEventListener("abort", close);
    try {
      const response = await connection.open(path, init, limitMs);
      return await connection.whole(() => jsonOf(response), limitMs);
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", close);
    }
  }

  /** Cancel a stream. Throws RefusedError. A stream that the server does not have has ended.
   * @param {string} id
   * @param {number | null} limitMs
   */
  async cancel(id, limitMs) {
    const connection = new Connection(this);
    const response = await connection.open(pathOf(id), { method: "DELETE" }, limitMs);
    if (!response.ok && response.status !== 404) throw await refusal(response);
    await connection.whole(() => response.text(), limitMs);
  }
}

/** Return the path of a stream.
 * @param {string} id
 */
export const pathOf = (id) => `streams/${encodeURIComponent(id)}`;

export class Connection {
  #server;
  #abort = new AbortController();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #parser = new EventParser();
  /** @type {Response | null} */
  #response = null;
  /** @type {ReadableStreamDefaultReader<Uint8Array> | null} */
  #reader = null;
  /** The reason why the connection ended. */
  why = ENDED_EARLY;

  /** @param {Server} server */
  constructor(server) {
    this.#server = server;
  }

  /** Return the response when its head arrives. Throws ServerUnreachableError.
   * @param {string} path
   * @param {Request} init
   * @param {number | null} limitMs
   */
  async open(path, init, limitMs) {
    const { fetch } = this.#server; // browsers refuse to call it as a method
    const [url, options] = this.#server.request(path, init);
    this.why = `No response came from ${this.#server.url}. Is the server running?`;
    this.#expectWithin(limitMs);
    try {
      const response = await fetch(url, { ...options, signal: this.#abort.signal });
      this.why = ENDED_EARLY;
      return (this.#response = response);
    } catch (error) {
      throw new ServerUnreachableError(this.why, { cause: error });
    } finally {
      clearTimeout(this.#timer);
    }
  }

  /** Return the next events, or null if the connection has ended. Throws UnexpectedAnswerError.
   * @param {number | null} silenceMs
   */
  async read(silenceMs) {
    this.#reader ??= this.#response?.body?.getReader() ?? null;
    this.#expectWithin(silenceMs);
    const { value, done } = await (this.#reader?.read() ?? ENDED).catch(() => ENDED);
    clearTimeout(this.#timer);
    return done ? null : this.#parser.feed(value);
  }

  /** Return what `read` reads from the response. Throws CutStreamError if the connection ends.
   * @template T
   * @param {() => Promise<T>} read
   * @param {number | null} limitMs
   */
  async whole(read, limitMs) {
    this.#expectWithin(limitMs);
    try {
      return await read();
    } catch (error) {
      if (error instanceof TypeError || this.#abort.signal.aborted) throw new CutStreamError(this.why, { cause: error });
      throw error;
    } finally {
      clearTimeout(this.#timer);
    }
  }

  /** Read the body to its end, so that the connection can serve another request. */
  async finish() {
    try {
      while ((await this.read(REST_MS)) !== null);
    } catch {
      this.close(); // events after the last one
    }
  }

  /** The milliseconds that the server asks to wait before a new connection, or null. */
  get retryMs() {
    return this.#parser.retryMs;
  }

  /** Close the connection. Pending reads end. */
  close() {
    clearTimeout(this.#timer);
    this.#abort.abort();
  }

  /** @param {number | null} milliseconds null sets no limit */
  #expectWithin(milliseconds) {
    clearTimeout(this.#timer);
    if (milliseconds === null) return;
    this.#timer = setTimeout(() => {
      this.why = `Nothing came from ${this.#server.url} for ${milliseconds / 1000} seconds.`;
      this.#abort.abort();
    }, Math.min(milliseconds, LONGEST_MS));
  }
}
