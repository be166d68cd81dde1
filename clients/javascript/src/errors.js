// The errors of the client, as one tree:
//
//   PenstockError
//   ├── ServerUnreachableError     no response came
//   ├── RefusedError               the server refused the request
//   ├── UnexpectedAnswerError      the response is not from a Penstock server
//   └── IncompleteAnswerError      the answer began but did not end: text, numDeltas
//       ├── CutStreamError         the connection ended
//       │   └── LostEventError     an event was lost on the way
//       └── FailedStreamError      the server reported an error
//
// A wrong argument is a TypeError or RangeError. index.d.ts describes each field.

export class PenstockError extends Error {
  get name() {
    return this.constructor.name;
  }
}

export class ServerUnreachableError extends PenstockError {}

export class UnexpectedAnswerError extends PenstockError {}

export class RefusedError extends PenstockError {
  /**
   * @param {number} status
   * @param {string} detail
   * @param {{code?: string | null, errors?: import("../index.d.ts").InvalidField[], retrySafe?: boolean,
   *   retryAfterMs?: number | null, headers?: Headers, problem?: Record<string, unknown> | null}} about
   */
  constructor(status, detail, { code, errors, retrySafe, retryAfterMs, headers, problem } = {}) {
    super(detail);
    this.status = status;
    this.detail = detail;
    this.code = code ?? null;
    this.errors = errors ?? [];
    this.retrySafe = retrySafe ?? false;
    this.retryAfterMs = retryAfterMs ?? null;
    this.headers = headers ?? new Headers();
    this.problem = problem ?? null;
  }

  get requestId() {
    return this.headers.get("X-Request-ID");
  }
}

export class IncompleteAnswerError extends PenstockError {
  /**
   * @param {string} message
   * @param {{text?: string, numDeltas?: number, cause?: unknown}} received
   */
  constructor(message, { text = "", numDeltas = 0, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.text = text;
    this.numDeltas = numDeltas;
  }
}

export class CutStreamError extends IncompleteAnswerError {}

export class LostEventError extends CutStreamError {}

export class FailedStreamError extends IncompleteAnswerError {
  /**
   * @param {import("./dialects.js").Failure} failure
   * @param {{text?: string, numDeltas?: number, usage?: import("../index.d.ts").Usage | null,
   *   timings?: import("../index.d.ts").Timings | null}} received
   */
  constructor(failure, { usage = null, timings = null, ...received } = {}) {
    super(failure.message ?? "The server reported an error without a message.", received);
    this.code = failure.code ?? "error";
    this.retrySafe = failure.retry_safe ?? false;
    this.usage = usage;
    this.timings = timings;
  }
}
