// Decides how long to wait before a new attempt and when to give up. In: the outcome of each connection.
// Out: milliseconds to wait, or null to give up. Not known here: fetch. Tests pass their own clock
// and random numbers, so they do not wait.

/** Milliseconds without a connection. A server keeps a stream without readers for 60 s by default. */
export const RESUME_TIMEOUT_MS = 50_000;

/** @typedef {{firstMs: number, factor: number, maxMs: number}} Backoff */

/** @type {Backoff} */
export const BACKOFF = { firstMs: 250, factor: 2, maxMs: 5000 };

/** Return the wait after so many attempts: a random part, 50 to 100 %, of a limit that grows.
 * @param {Backoff} backoff
 * @param {number} numAttempts
 * @param {number} chance a random number from 0 to 1
 */
export function waitMs({ firstMs, factor, maxMs }, numAttempts, chance) {
  return (Math.min(maxMs, firstMs * factor ** numAttempts) * (1 + chance)) / 2;
}

/** The waits before each attempt to resume a stream. */
export class Patience {
  #limit;
  #backoff;
  #now;
  #chance;
  #attempts = 0; // since the last event
  #spent = 0; // time without a connection since the last event, before this cut
  /** @type {number | null} */
  #lostAt = null;

  constructor({ limit = RESUME_TIMEOUT_MS, backoff = BACKOFF, now = () => performance.now(), chance = Math.random } = {}) {
    this.#limit = limit;
    this.#backoff = { ...backoff };
    this.#now = now;
    this.#chance = chance;
  }

  /** The server set the first wait, or did not. @param {number | null} milliseconds */
  set firstMs(milliseconds) {
    this.#backoff.firstMs = milliseconds ?? this.#backoff.firstMs;
  }

  /** The milliseconds that are left without a connection. */
  get leftMs() {
    return this.#limit - this.#spent - (this.#lostAt === null ? 0 : this.#now() - this.#lostAt);
  }

  /** The connection is lost. Return the milliseconds to wait before the next attempt, null to give up. */
  wait(atLeast = 0) {
    this.#lostAt ??= this.#now();
    const left = this.leftMs;
    if (left <= 0 || atLeast > left) return null;
    const wait = waitMs(this.#backoff, this.#attempts, this.#chance());
    this.#attempts += 1;
    return Math.max(atLeast, Math.min(left, wait));
  }

  /** The connection is back. The waits do not start anew yet: the next cut may come at once. */
  resumed() {
    if (this.#lostAt !== null) this.#spent += this.#now() - this.#lostAt;
    this.#lostAt = null;
  }

  /** An event arrived: start the waits anew. */
  progressed() {
    this.#attempts = this.#spent = 0;
  }
}

/** Return what a status means for a stream that is resumed.
 * @param {number} status
 * @returns {"rest" | "later" | "forgotten" | "no"}
 */
export function meaningOf(status) {
  if (status === 200) return "rest";
  if (status >= 500 || [408, 425, 429].includes(status)) return "later";
  return status === 404 || status === 410 ? "forgotten" : "no";
}
