// What to do after a cut: how long to wait, and when to give up. In: what became of each connection.
// Out: milliseconds to wait, or the word that it is over. Not known here: fetch, the DOM. Time and
// chance are given, so all of it can be tried without waiting.

const LIMIT_MS = 50_000; // without a connection; the server keeps a stream without readers for 60 s
const FIRST_MS = 250;
const MAX_MS = 5000;

/** How a cut stream is resumed: waits that grow, by chance between half of each and all of it. */
export class Patience {
  #limit;
  #now;
  #chance;
  #attempts = 0; // since the last event
  #spent = 0; // without a connection since the last event, before this cut
  #lostAt = null;
  firstMs = FIRST_MS; // the server may name another

  constructor({ limit = LIMIT_MS, now = () => performance.now(), chance = Math.random } = {}) {
    this.#limit = limit;
    this.#now = now;
    this.#chance = chance;
  }

  /** There is no connection. The milliseconds to wait before the next attempt, null to give up. */
  wait(atLeast = 0) {
    this.#lostAt ??= this.#now();
    const left = this.#limit - this.#spent - (this.#now() - this.#lostAt);
    if (left <= 0 || atLeast > left) return null;
    const longest = Math.min(MAX_MS, this.firstMs * 2 ** this.#attempts);
    this.#attempts += 1;
    return Math.max(atLeast, Math.min(left, (longest * (1 + this.#chance())) / 2));
  }

  /** There is a connection again. That alone proves little: the next cut may come at once. */
  resumed() {
    if (this.#lostAt !== null) this.#spent += this.#now() - this.#lostAt;
    this.#lostAt = null;
  }

  /** An event came: all is well. */
  progressed() {
    this.#attempts = this.#spent = 0;
  }
}

/** What an answer to a question for the rest of a stream means: "rest", "later", "forgotten", "no". */
export function meaningOf(status) {
  if (status === 200) return "rest";
  if (status >= 500 || [408, 425, 429].includes(status)) return "later";
  return status === 404 || status === 410 ? "forgotten" : "no";
}

/** The milliseconds a `Retry-After` asks for: seconds or a date (RFC 9110, 10.2.3). */
export function retryAfter(value, now = Date.now()) {
  if (/^\d{1,9}$/.test(value ?? "")) return Number(value) * 1000;
  if (!/^[A-Z][a-z]{2}, /.test(value ?? "")) return 0; // `Date.parse` takes "-1" for a year
  return Math.max(0, Date.parse(value) - now) || 0; // what is no date after all is NaN
}
