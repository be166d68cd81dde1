// The two APIs that the pages use: what a request has, and what an event means. In: the fields of a
// request; the data of events. Out: a body; deltas and endings (generation.js lists them). Not known here:
// connections, numbers of events.

/** The native API (docs/protocol.md). A delta is a text. */
export const native = {
  path: "generate",
  headers: {},
  body: (fields) => ({ ...fields, stream: true, resumable: true, queue_events: true }),
  reader: () => (type, data) => {
    const event = JSON.parse(data);
    if (type === "queue") return { queued: event };
    if (!event.finished) return { delta: event.token, index: event.index };
    return { ending: nativeEnding(event), index: event.index };
  },
};

function nativeEnding({ finish_reason: reason, error, usage, timings }) {
  if (reason !== "error") return { kind: "finish", reason, usage, timings };
  return { kind: "failure", message: error.message, usage, timings };
}

/** OpenAI's chats, which also have reasoning and tool calls. A delta is `{content, reasoning, calls}`. */
export const chat = {
  path: "v1/chat/completions",
  headers: { "X-Penstock-Resumable": "true" },
  body: (fields) => ({ ...fields, stream: true, stream_options: { include_usage: true } }),
  reader() {
    let ending = null; // known some events before the last one
    return (_, data) => {
      if (data === "[DONE]") return { ending: ending ?? { kind: "lost" } };
      const event = JSON.parse(data);
      if (event.error) {
        ending = { kind: "failure", message: event.error.message };
        return {};
      }
      if (event.usage && ending) ending.usage = event.usage;
      const [choice] = event.choices;
      if (!choice) return {};
      if (choice.finish_reason) ending = { kind: "finish", reason: choice.stop_reason ?? choice.finish_reason };
      const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
      return content || reasoning || calls ? { delta: { content, reasoning, calls } } : {};
    };
  },
};
