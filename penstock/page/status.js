// Tells in words what happens to a stream besides its tokens. In: a status of the server (docs/protocol.md).
// Out: the state of the page, which CSS shows, and a sentence. Not known here: the DOM.
import { placed } from "./endings.js";

const inWords = (seconds) => `${Math.round(seconds)} s`;

/** Return how many tokens a stream keeps, as the end of a sentence. */
export function kept(count) {
  if (!count) return "";
  return count === 1 ? " 1 token is kept." : ` ${count} tokens are kept.`;
}

/**
 * Return the page's state, the sentence and the pipe's state (pipe.js) for a status; null while tokens come.
 * `count` tokens have arrived.
 */
export function describeStatus(status, count) {
  const { state, position, eta = null, seconds, limit } = status;
  switch (state) {
    case "queued":
      return ["waiting", placed({ position, eta }), { kind: "queued", place: position, seconds: eta }];
    case "prefill":
      return prefill(status, count);
    case "stalled":
      return ["resuming", `The engine has been silent for ${inWords(seconds)}. It is restarted after ${inWords(limit)}.${kept(count)}`, { kind: "stalled", seconds }];
    case "restarting":
      return ["resuming", `The engine died and is restarting…${kept(count)}`, { kind: "restarting", kept: count }];
    case "moved":
      return ["resuming", `Another server takes the answer over…${kept(count)}`, { kind: "restarting", kept: count }];
    case "waiting":
      return ["resuming", `No server that runs the model answers. The answer waits for one…${kept(count)}`, { kind: "restarting", kept: count }];
    case "continuing":
      return ["resuming", `A server that ran the model failed. Another one goes on…${kept(count)}`, { kind: "restarting", kept: count }];
    default:
      return null;
  }
}

function prefill({ prompt_tokens: all, read_tokens: read }, count) {
  const fraction = all && read ? Math.min(1, read / all) : null;
  if (count) return ["resuming", `The engine is back and reads the text so far…${kept(count)}`, { kind: "restarting", kept: count }];
  const part = fraction === null ? "" : ` ${Math.round(100 * fraction)}%`;
  return ["waiting", `The engine reads the prompt…${part}`, { kind: "prefill", fraction }];
}

/** Return how often the engine was restarted under a stream, as the end of a status text. */
export function restarted(times) {
  if (times === 0) return "";
  return ` The engine was restarted ${["once", "twice"][times - 1] ?? `${times} times`}.`;
}
