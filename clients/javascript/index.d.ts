/**
 * The JavaScript client of a Penstock server.
 *
 * Times that you give are in milliseconds. Figures of the server (`timings`, `eta`) are in seconds, as it sends
 * them. Fields of requests have the names of the protocol (`max_tokens`).
 */

export interface PenstockOptions {
  /** The URL of the server, with its path if it has one. `http://127.0.0.1:8000` by default. */
  url?: string;
  /** The API key, if the server needs one. It goes into a header, never into a URL. */
  key?: string | null;
  /**
   * The milliseconds that the server may send nothing; 600,000 by default. null sets no limit. A resumable
   * stream has heartbeats, so 45 seconds of silence cut its connection.
   */
  timeout?: number | null;
  /**
   * How often a request is sent again that got no answer; 0 by default. That happens only if the server refused it
   * and says that it is safe (`retrySafe`), or if no response came. The client sends an `Idempotency-Key`,
   * so that the server does not generate twice; a whole answer then goes on for a minute if you abort it. It waits for
   * `Retry-After`, if that is a minute or less.
   */
  retries?: number;
  /** The milliseconds that a cut stream may be without a connection; 50,000 by default. */
  resumeTimeout?: number;
  /** The waits between attempts. Each is multiplied by a random number from 0.5 to 1. */
  backoff?: Partial<Backoff>;
  /** The function that makes requests; `globalThis.fetch` by default. */
  fetch?: typeof fetch;
}

export interface Backoff {
  /** Milliseconds before the first attempt, unless the server sends `retry`. 250 by default. */
  firstMs: number;
  /** The growth of the wait from one attempt to the next. 2 by default. */
  factor: number;
  /** The longest wait in milliseconds. 5,000 by default. */
  maxMs: number;
}

/** The options of an answer. docs/protocol.md has their limits and defaults. */
export interface Sampling {
  /** The most tokens to generate. */
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  top_k?: number;
  seed?: number;
  /** A string, or up to 4 strings. The answer ends before the first of them. */
  stop?: string | string[];
  /** Seconds after which the server ends the stream with the reason "deadline". */
  timeout?: number;
}

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

/** A request to `/generate`: give either a prompt, the text to continue, or messages, a conversation. */
export interface GenerateRequest extends Sampling {
  prompt?: string;
  messages?: Message[];
}

/** A request to `/v1/chat/completions`: every field of OpenAI's chats, except `stream`. */
export interface ChatRequest {
  messages: object[];
  [field: string]: unknown;
}

export interface ChatDelta {
  content?: string | null;
  /** A piece of the model's reasoning. */
  reasoning?: string | null;
  /** Pieces of tool calls, in OpenAI's form. */
  calls?: { index: number; id?: string; function: { name?: string; arguments?: string } }[] | null;
}

export interface QueuePlace {
  /** The place in the queue: 1 is next. */
  position: number;
  /** The estimated seconds until the stream starts, if the server has an estimate. */
  eta?: number | null;
}

/** What happens to a stream. Servers that do not report statuses report none. */
export interface Status {
  state: string;
  [figure: string]: unknown;
}

export interface StreamOptions {
  /** Aborting it closes the stream. Reading then throws the signal's reason. */
  signal?: AbortSignal;
  /** Called with the reason, a sentence, each time the connection is lost. */
  onCut?: (why: string) => void;
  /** Called each time the stream continues. */
  onResume?: () => void;
  /** Called with the place in the queue, at first and when it changes. After a cut, no places are reported. */
  onQueue?: (place: QueuePlace) => void;
  /** Called when something happens to the stream, for example when the engine restarts. */
  onStatus?: (status: Status) => void;
}

export interface NewStreamOptions extends StreamOptions {
  /** false: the stream ends with its connection. true by default. */
  resumable?: boolean;
  /** Called with the id of the stream when the server has accepted the request. */
  onBegin?: (id: string) => void;
  /** A key of your own for the request; with `retries`, the client makes one. */
  idempotencyKey?: string;
}

export interface ResumeOptions extends StreamOptions {
  /** The number of the last event that you have, such as a `lastEventId`; null, the default, reads all. */
  after?: number | null;
}

export interface GenerateOptions {
  signal?: AbortSignal;
  idempotencyKey?: string;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  cached_tokens?: number;
}

/** Times by the server's clock, in seconds. */
export interface Timings {
  queue_time: number;
  time_to_first_token: number | null;
  total_time: number;
  tokens_per_second: number | null;
}

export interface Completion {
  text: string;
  usage: Usage;
  /** Seconds that the request took, as the server measured them. */
  requestTime: number;
  finishReason: FinishReason;
  timings: Timings | null;
}

/** "stop", "length", "cancelled", "deadline" or "error"; chats also have OpenAI's reasons, such as "tool_calls". */
export type FinishReason = string;

/**
 * An answer that arrives while the model generates it. The request is sent when you begin to read. If you
 * leave the loop early, the generation ends at once.
 */
export interface Stream<Delta> extends AsyncIterable<Delta> {
  /** The server's id of the stream; null before the stream begins. */
  readonly id: string | null;
  /** The text that you have read so far. */
  readonly text: string;
  /** The number of the last event that you have read; null before the first event. */
  readonly lastEventId: number | null;
  /** How often the stream was cut and resumed. */
  readonly numResumes: number;
  /** Why the answer ended; null before its end. */
  readonly finishReason: FinishReason | null;
  /** The token counts of the engine; null before the end. */
  readonly usage: Usage | null;
  /** null before the end, and for chats. */
  readonly timings: Timings | null;
  /**
   * Yields texts, or the deltas of a chat. Throws ServerUnreachableError, RefusedError, UnexpectedAnswerError,
   * CutStreamError or FailedStreamError. A stream can be read once.
   */
  [Symbol.asyncIterator](): AsyncGenerator<Delta, void, undefined>;
  /**
   * Cancel the generation and read on: the stream ends with the reason "cancelled". A stream that you do not read yet
   * is closed. Throws RefusedError or ServerUnreachableError.
   */
  cancel(): Promise<void>;
  /** Leave the stream. This ends the generation too, except for a stream from `resume`. */
  close(): void;
}

/** A client of one server. */
export class Penstock {
  /** Throws TypeError or RangeError for an invalid option. */
  constructor(options?: PenstockOptions);
  readonly url: string;
  /** Stream the answer to a prompt or a conversation. Throws TypeError unless there is exactly one of them. */
  stream(request: string | GenerateRequest, options?: NewStreamOptions): Stream<string>;
  /** Stream the answer of a chat, with reasoning and tool calls. */
  chat(request: ChatRequest, options?: NewStreamOptions): Stream<ChatDelta>;
  /**
   * Read a stream that another client or page opened with `stream`. Leaving it does not end it. A server that is
   * away is waited for, as after a cut. Throws RefusedError if the server does not have the stream.
   */
  resume(id: string, options?: ResumeOptions): Stream<string>;
  /** Read a stream that was opened with `chat`. */
  resumeChat(id: string, options?: ResumeOptions): Stream<ChatDelta>;
  /** Return the whole answer when it is complete. Throws the errors of a stream, except FailedStreamError. */
  generate(request: string | GenerateRequest, options?: GenerateOptions): Promise<Completion>;
  /** Return the status that the server reports: "healthy". */
  health(): Promise<string>;
  /** Return the name of the model. */
  model(): Promise<string>;
}

/** The base class of every error between the client and its server. */
export class PenstockError extends Error {}

/** No response came: no server answers at the URL, or the connection ended before the response began. */
export class ServerUnreachableError extends PenstockError {}

/** A server answered, but not as a Penstock server does. */
export class UnexpectedAnswerError extends PenstockError {}

/** A field that the server refused. */
export interface InvalidField {
  field: string;
  message: string;
  code?: string;
}

/** The server refused the request: everything that its response says. */
export class RefusedError extends PenstockError {
  constructor(status: number, detail: string, about?: object);
  readonly status: number;
  /** The stable name of the error (docs/reference/errors.md); null if a proxy answered. */
  readonly code: string | null;
  /** The error as a sentence. */
  readonly detail: string;
  readonly errors: InvalidField[];
  /** True if you can send the same request again. */
  readonly retrySafe: boolean;
  /** The milliseconds that the server asks you to wait; null if it does not. */
  readonly retryAfterMs: number | null;
  readonly requestId: string | null;
  readonly headers: Headers;
  /** The body of the response: problem details, or OpenAI's error object; null if it is not JSON. */
  readonly problem: Record<string, unknown> | null;
}

/** The base class of the errors of an answer that began but did not come to its end. */
export class IncompleteAnswerError extends PenstockError {
  /** The text that arrived. */
  readonly text: string;
  /** The number of events in which it arrived. */
  readonly numDeltas: number;
}

/**
 * The connection ended before the answer did, and the stream could not be resumed. `cause` is the RefusedError
 * with which the server refused that, if it did.
 */
export class CutStreamError extends IncompleteAnswerError {}

/** An event is missing, so the text would have a gap. */
export class LostEventError extends CutStreamError {}

/** The server ended the stream with an error. */
export class FailedStreamError extends IncompleteAnswerError {
  /** The stable name of the error. */
  readonly code: string;
  /** True if you can send the same request again. */
  readonly retrySafe: boolean;
  readonly usage: Usage | null;
  readonly timings: Timings | null;
}
