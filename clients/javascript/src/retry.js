// Sends a request again, if that is safe. In: a function that sends it. Out: its response, or the error of
// the last attempt. Safe means that the server has done nothing: it refused the request and says so, or no
// response came and the request has an Idempotency-Key, which makes the server join both.
import { RefusedError, ServerUnreachableError } from "./errors.js";
import { waitMs } from "./resume.js";

const MAX_RETRY_AFTER_MS = 60_000; // a longer wait is an error to the caller

/**
 * @template T
 * @param {() => Promise<T>} send
 * @param {{retries: number, backoff: import("./resume.js").Backoff, pause: (ms: number) => Promise<void>}} policy
 */
export async function retried(send, { retries, backoff, pause }) {
  for (let numFailed = 0; ; numFailed++) {
    try {
      return await send();
    } catch (error) {
      const atLeast = allowedWait(error);
      if (atLeast === null || numFailed >= retries) throw error;
      await pause(Math.max(atLeast, waitMs(backoff, numFailed, Math.random())));
    }
  }
}

/** Return the milliseconds that the server asks to wait, or null if the request may not be sent again.
 * @param {unknown} error
 */
function allowedWait(error) {
  if (error instanceof ServerUnreachableError) return 0;
  if (!(error instanceof RefusedError) || !error.retrySafe) return null;
  const wait = error.retryAfterMs ?? 0;
  return wait <= MAX_RETRY_AFTER_MS ? wait : null;
}

/** Return a new key for a request: 128 random bits. (`randomUUID` is missing on pages without TLS.) */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Wait, or return at once when `signal` aborts.
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    const stop = () => {
      clearTimeout(timer);
      resolve();
    };
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
