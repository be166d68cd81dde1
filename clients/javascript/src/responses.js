// What a response says besides its events. In: the response to a request. Out: whether it is the expected
// one; the error of a refusal, whether it is a problem (RFC 9457), OpenAI's error object, or a proxy's page.
import { RefusedError, UnexpectedAnswerError } from "./errors.js";

/** Throw RefusedError, or UnexpectedAnswerError if a 200 has another type: any server may answer 200.
 * @param {Response} response
 * @param {string} type
 */
export async function expect(response, type) {
  if (response.status !== 200) throw await refusal(response);
  const got = (response.headers.get("Content-Type") ?? "").split(";")[0].trim().toLowerCase();
  if (got === type) return;
  const has = got ? `the type ${got}` : "no type";
  throw new UnexpectedAnswerError(`The response has ${has} instead of ${type}: is this a Penstock server?`);
}

/** Return the value of a whole response. Throws the errors of `expect`.
 * @param {Response} response
 * @returns {Promise<any>}
 */
export async function jsonOf(response) {
  await expect(response, "application/json");
  return parsed(await response.text());
}

/** Return a JSON value. Throws UnexpectedAnswerError.
 * @param {string} text
 * @returns {any}
 */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new UnexpectedAnswerError("The server sent JSON that cannot be read.");
  }
}

/** Return the error for a response whose status is not 200.
 * @param {Response} response
 */
export async function refusal(response) {
  const { status, headers } = response;
  const problem = await response.json().catch(() => null); // a proxy's page is not JSON
  const told = problem?.error?.message !== undefined ? ofOpenAI(problem.error) : problem ?? {};
  const plain = `The server returned status ${status} without a reason.`;
  return new RefusedError(status, told.detail ?? told.title ?? plain, {
    code: told.code,
    errors: told.errors,
    retrySafe: told.retry_safe,
    retryAfterMs: headers.has("Retry-After") ? retryAfter(headers.get("Retry-After")) : null,
    headers,
    problem,
  });
}

/** @param {{message: string, code?: string, param?: string, retry_safe?: boolean}} error */
function ofOpenAI({ message, code, param, retry_safe }) {
  return { detail: message, title: null, code, retry_safe, errors: param ? [{ field: param, message, code }] : [] };
}

/** Return the milliseconds of a `Retry-After`, which holds seconds or a date (RFC 9110, 10.2.3).
 * @param {string | null} value
 */
export function retryAfter(value, now = Date.now()) {
  if (value === null) return 0;
  if (/^\d{1,9}$/.test(value)) return Number(value) * 1000;
  if (!/^[A-Z][a-z]{2}, /.test(value)) return 0; // `Date.parse` reads "-1" as a year
  return Math.max(0, Date.parse(value) - now) || 0; // NaN if it is not a date
}
