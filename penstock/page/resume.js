// Decides after a cut how long to wait and when to give up. In: the outcome of each connection. Out:
// milliseconds to wait, or null to give up. Not known here: fetch, the DOM. Tests pass their own clock
// and random numbers, so they do not wait.

const LIMIT_MS = 50_000; // time without a connection; by default the server keeps a stream without readers for 60 s
const FIRST_MS = 250;
const MAX_MS = 5000;

/** The waits before each attempt to resume. They grow; each is a random part, 50 to 100 %, of its limit. */
export class Patience {
  #limit;
  #now;
  #chance;
  #attempts = 0; // since the last event
  #spent = 0; // time without a connection since the last event, before this cut
  #lostAt = null;
  firstMs = FIRST_MS; // the server may set another value

  constructor({ limit = LIMIT_MS, now = () => performance.now(), chance = Math.random } = {}) {
    this.#limit = limit;
    this.#now = now;
    this.#chance = chance;
  }

  /** The connection is lost. Return the milliseconds to wait before the next attempt, null to give up. */
  wait(atLeast = 0) {
    this.#lostAt ??= this.#now();
    const left = this.#limit - this.#spent - (this.#now() - this.#lostAt);
    if (left <= 0 || atLeast > left) return null;
    const longest = Math.min(MAX_MS, this.firstMs * 2 ** this.#attempts);
    this.#attempts += 1;
    return Math.max(atLeast, Math.min(left, (longest * (1 + this.#chance())) / 2));
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

/** Return what a status means when the page resumes a stream: "rest", "later", "forgotten" or "no". */
export function meaningOf(status) {
  if (status === 200) return "rest";
  if (status >= 500 || [408, 425, 429].includes(status)) return "later";
  return status === 404 || status === 410 ? "forgotten" : "no";
}

/** Return the milliseconds of a `Retry-After`, which holds seconds or a date (RFC 9110, 10.2.3). */
export function retryAfter(value, now = Date.now()) {
  if (/^\d{1,9}$/.test(value ?? "")) return Number(value) * 1000;
  if (!/^[A-Z][a-z]{2}, /.test(value ?? "")) return 0; // `Date.parse` reads "-1" as a year
  return Math.max(0, Date.parse(value) - now) || 0; // NaN if it is not a date
}
