// The client of a Penstock server. In: its address, and the arguments of a call. Out: streams, whole
// answers. Not known here: how a stream is read and resumed (stream.js).
import { Server } from "./connection.js";
import { chat, native } from "./dialects.js";
import { BACKOFF, RESUME_TIMEOUT_MS } from "./resume.js";
import { newKey, pause, retried } from "./retry.js";
import { Stream } from "./stream.js";

const DEFAULT_URL = "http://127.0.0.1:8000";
const DEFAULT_TIMEOUT_MS = 600_000;
const JSON_TYPE = { "Content-Type": "application/json", Accept: "application/json" };
const EVENTS_TYPE = { "Content-Type": "application/json", Accept: "text/event-stream" };

/**
 * @typedef {object} Settings What the streams of a client share.
 * @property {Server} server
 * @property {number | null} timeout
 * @property {number} retries
 * @property {number} resumeTimeout
 * @property {import("./resume.js").Backoff} backoff
 */

export class Penstock {
  /** @type {Settings} */
  #settings;

  /** @param {import("../index.d.ts").PenstockOptions} [options] */
  constructor(options = {}) {
    const { url = DEFAULT_URL, key = null, timeout = DEFAULT_TIMEOUT_MS, retries = 0 } = options;
    const { resumeTimeout = RESUME_TIMEOUT_MS, backoff = {}, fetch = globalThis.fetch } = options;
    if (!/^https?:\/\/[^/]/.test(url)) throw new TypeError("The URL must be like http://127.0.0.1:8000.");
    for (const [name, value] of Object.entries({ timeout: timeout ?? 0, retries, resumeTimeout })) {
      if (!(value >= 0)) throw new RangeError(`${name} must be a number, 0 or more.`);
    }
    const server = new Server({ url, key, fetch });
    this.#settings = { server, timeout, retries, resumeTimeout, backoff: { ...BACKOFF, ...backoff } };
  }

  get url() {
    return this.#settings.server.url;
  }

  /**
   * @param {string | import("../index.d.ts").GenerateRequest} request
   * @param {import("../index.d.ts").NewStreamOptions} [options]
   * @returns {Stream<string>}
   */
  stream(request, options) {
    return this.#new(native, fieldsOf(request), options);
  }

  /**
   * @param {import("../index.d.ts").ChatRequest} request
   * @param {import("../index.d.ts").NewStreamOptions} [options]
   * @returns {Stream<import("../index.d.ts").ChatDelta>}
   */
  chat(request, options) {
    return this.#new(chat, request, options);
  }

  /**
   * @param {string} id
   * @param {import("../index.d.ts").ResumeOptions} [options]
   * @returns {Stream<string>}
   */
  resume(id, options) {
    return this.#existing(native, id, options);
  }

  /**
   * @param {string} id
   * @param {import("../index.d.ts").ResumeOptions} [options]
   * @returns {Stream<import("../index.d.ts").ChatDelta>}
   */
  resumeChat(id, options) {
    return this.#existing(chat, id, options);
  }

  /**
   * @param {string | import("../index.d.ts").GenerateRequest} request
   * @param {import("../index.d.ts").GenerateOptions} [options]
   * @returns {Promise<import("../index.d.ts").Completion>}
   */
  async generate(request, { signal, idempotencyKey } = {}) {
    const body = JSON.stringify({ ...fieldsOf(request), stream: false });
    const init = { method: "POST", headers: { ...JSON_TYPE, ...this.#idempotency(idempotencyKey) }, body };
    const { text, usage, timings, request_time, finish_reason } = await this.#json(native.path, init, signal);
    return { text, usage, timings: timings ?? null, requestTime: request_time, finishReason: finish_reason };
  }

  /** @returns {Promise<string>} */
  async health() {
    return (await this.#json("health", { headers: JSON_TYPE })).status;
  }

  /** @returns {Promise<string>} */
  async model() {
    return (await this.#json("", { headers: JSON_TYPE })).model;
  }

  /**
   * @template Delta
   * @param {import("./dialects.js").Dialect<Delta>} dialect
   * @param {object} fields
   * @param {import("../index.d.ts").NewStreamOptions} [options]
   */
  #new(dialect, fields, { resumable = true, idempotencyKey, ...hooks } = {}) {
    const asked = { resumable, queueEvents: hooks.onQueue !== undefined };
    const headers = { ...EVENTS_TYPE, ...dialect.headers(asked), ...this.#idempotency(idempotencyKey) };
    const request = { method: "POST", headers, body: JSON.stringify(dialect.body(fields, asked)) };
    return new Stream(this.#settings, dialect, { request, id: null, after: null, resumable }, hooks);
  }

  /**
   * @template Delta
   * @param {import("./dialects.js").Dialect<Delta>} dialect
   * @param {string} id
   * @param {import("../index.d.ts").ResumeOptions} [options]
   */
  #existing(dialect, id, { after = null, ...hooks } = {}) {
    if (id === "") throw new TypeError("The id of a stream must not be empty.");
    if (after !== null && !(after >= 0)) throw new RangeError("after must be the number of an event, 0 or more.");
    return new Stream(this.#settings, dialect, { request: null, id, after, resumable: true }, hooks);
  }

  /** Return the header that makes it safe to send a request again.
   * @param {string} [key]
   * @returns {Record<string, string>}
   */
  #idempotency(key = this.#settings.retries > 0 ? newKey() : undefined) {
    return key === undefined ? {} : { "Idempotency-Key": key };
  }

  /**
   * @param {string} path
   * @param {import("./connection.js").Request} init
   * @param {AbortSignal} [signal]
   */
  #json(path, init, signal) {
    const { server, timeout } = this.#settings;
    const send = () => server.json(path, init, timeout, signal);
    return retried(send, { ...this.#settings, pause: (ms) => pause(ms, signal) });
  }
}

/** @param {string | import("../index.d.ts").GenerateRequest} request */
function fieldsOf(request) {
  const fields = typeof request === "string" ? { prompt: request } : request;
  if ((fields.prompt == null) === (fields.messages == null)) throw new TypeError("Give either a prompt or messages.");
  return fields;
}
