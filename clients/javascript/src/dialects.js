// The two APIs that a stream may speak: what a request has, and what an event means. In: the fields of a
// request; the data of events. Out: a body; deltas, and an ending. Not known here: connections, numbers
// of events.
import { parsed } from "./responses.js";

/**
 * @typedef {{code?: string, message?: string, retry_safe?: boolean}} Failure
 *
 * @typedef {object} Ending The last event. A `failure` says that the server ended the stream with an error.
 * @property {string | null} finishReason
 * @property {import("../index.d.ts").Usage} [usage]
 * @property {import("../index.d.ts").Timings} [timings]
 * @property {Failure} [failure]
 *
 * @typedef {{resumable: boolean, queueEvents: boolean}} Asked
 */

/**
 * @template Delta
 * @typedef {object} Dialect
 * @property {string} path
 * @property {(fields: object, asked: Asked) => object} body
 * @property {(asked: Asked) => Record<string, string>} headers
 * @property {(delta: Delta) => string} textOf
 * @property {() => (data: string) => {delta?: Delta, index?: number, ending?: Ending | null}} reader An ending
 *   of null says that nothing follows, although the answer has no end.
 */

/** The native API (docs/protocol.md). A delta is a text.
 * @type {Dialect<string>}
 */
export const native = {
  path: "generate",
  body: (fields, { resumable, queueEvents }) => ({
    ...fields,
    stream: true,
    ...(resumable && { resumable }),
    ...(queueEvents && { queue_events: true }),
  }),
  headers: () => ({}),
  textOf: (text) => text,
  reader: () => (data) => {
    const { finished, index, token, error, finish_reason: finishReason, usage, timings } = parsed(data);
    if (!finished) return { delta: token, index };
    const failure = finishReason === "error" ? error ?? {} : undefined;
    return { ending: { finishReason, usage, timings, failure }, index };
  },
};

/** OpenAI's chats, which also have reasoning and tool calls.
 * @type {Dialect<import("../index.d.ts").ChatDelta>}
 */
export const chat = {
  path: "v1/chat/completions",
  body: (fields) => ({ ...fields, stream: true, stream_options: { include_usage: true } }),
  headers: ({ resumable }) => ({ "X-Penstock-Resumable": String(resumable) }),
  textOf: ({ content }) => content ?? "",
  reader() {
    /** @type {Ending | null} */
    let ending = null; // known some events before the last one
    return (data) => {
      if (data === "[DONE]") return { ending };
      const { error, usage, choices } = parsed(data);
      if (error) {
        ending = { finishReason: "error", failure: error };
        return {};
      }
      if (usage && ending) ending.usage = usage;
      const choice = choices?.[0];
      if (!choice) return {};
      // Penstock's own reasons, such as "cancelled", are beside OpenAI's.
      if (choice.finish_reason) ending = { finishReason: choice.stop_reason ?? choice.finish_reason };
      const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
      return content || reasoning || calls ? { delta: { content, reasoning, calls } } : {};
    };
  },
};
