// An answer of the client, as the pages see it. In: a stream, or the fields of a request. Out: its deltas and its
// ending, which is one of these values. Not known here: HTTP, the DOM.
//   {kind: "finish",  reason, usage, timings}              the answer ended; a whole answer also has its `text`
//   {kind: "failure", message, usage, timings}             the server ended it with an error
//   {kind: "refused", code, message, fields, needsKey}     an error response
//   {kind: "lost", message}                                cut and not resumed, with the server's reason, if any
//   {kind: "forgotten"}                                    the server no longer has the stream
//   {kind: "unreachable"}                                  no response
//   {kind: "stopped"}                                      the page closed the connection; the server did not confirm
import * as client from "./client/index.js";
import { setSlow, stagedFetch } from "./stage.js";

const STOP_MS = 2000; // time for a stop before the page closes the connection

/** An answer. Call `read` or `request` once; call `stop` at any time. */
export class Answer {
  stopAsked = false;
  #key;
  #stream = null;
  #abort = new AbortController();
  #stopTimer = null;

  /** `key` is the API key, or "" if the server needs none. */
  constructor(key) {
    this.#key = key;
  }

  get numResumes() {
    return this.#stream?.numResumes ?? 0;
  }

  /** Read the stream that `open` returns for a client: call `take` with each delta, and return the ending. */
  read(open, take) {
    return this.#ending(async () => {
      const stream = (this.#stream = open(this.#connect()));
      for await (const delta of stream) take(delta);
      const { finishReason, usage, timings } = stream;
      return { finishReason, usage, timings };
    });
  }

  /** Request a whole answer and return the ending. */
  request(fields) {
    return this.#ending(() => this.#connect().generate(fields, { signal: this.#abort.signal }));
  }

  /** Ask the server to end the answer. If that takes too long, close the connection. */
  async stop() {
    if (this.stopAsked) return;
    this.stopAsked = true;
    setSlow(false); // the end stands behind everything that was not read yet
    if (this.#stream === null) return this.#abort.abort(); // the server cancels when the client leaves
    this.#stopTimer = setTimeout(() => this.#stream.close(), STOP_MS);
    await this.#stream.cancel().catch(() => this.#stream.close());
  }

  /** Return a client of this page's server, at whatever host and path it is. */
  #connect() {
    const url = new URL(".", document.baseURI).href;
    try {
      // A whole answer may take as long as it likes: the user can stop it.
      return new client.Penstock({ url, key: this.#key, timeout: null, fetch: stagedFetch });
    } catch (error) {
      throw new client.RefusedError(401, error.message); // no header can carry the key
    }
  }

  async #ending(receive) {
    try {
      const { finishReason: reason, ...answer } = await receive();
      return { kind: "finish", reason, ...answer };
    } catch (error) {
      return endingOf(error, Boolean(this.#stream?.id));
    } finally {
      clearTimeout(this.#stopTimer);
    }
  }
}

/** Return the ending for an error. `hasBegun` says that there is a stream. */
function endingOf(error, hasBegun) {
  const refused = error instanceof client.RefusedError ? error : error.cause instanceof client.RefusedError ? error.cause : null;
  if (hasBegun && (refused?.status === 404 || refused?.status === 410)) return { kind: "forgotten" };
  switch (error.constructor) {
    case client.RefusedError:
      if (hasBegun) return { kind: "lost", message: error.detail };
      return { kind: "refused", code: error.code, message: error.detail, fields: error.errors, needsKey: error.status === 401 };
    case client.CutStreamError:
      return { kind: "lost", message: refused?.detail };
    case client.ServerUnreachableError:
      return { kind: "unreachable" };
    case client.LostEventError:
    case client.FailedStreamError:
    case client.UnexpectedAnswerError:
      return { kind: "failure", message: error.message, usage: error.usage, timings: error.timings };
    case client.PenstockError:
    case DOMException: // the request was aborted
      return { kind: "stopped" };
    default:
      throw error; // an error of the page
  }
}
