// Tells in words how an answer goes and how it ended. In: the values of answer.js. Out: the state
// of the page, which CSS shows, and a sentence.

const TOO_LONG = ["context_length_exceeded", "prompt_too_long"];
const FULL = "This is longer than the model can read at once (its context). Begin a new one, or make it shorter.";

/** Return the state of the page and the sentence for an ending after `count` tokens. */
export function describe(ending, stopAsked, count) {
  const after = count ? `after ${count} ${count === 1 ? "token" : "tokens"}` : "before the first token";
  const incomplete = count ? " The text above is incomplete." : "";
  switch (ending.kind) {
    case "finish":
      if (ending.reason === "stop") return ["finished", "Finished: the model ended its answer or reached a stop string."];
      if (ending.reason === "tool_calls") return ["finished", "Finished: the model calls tools."];
      if (ending.reason === "length") return ["finished", "Finished: the token limit was reached."];
      if (ending.reason === "deadline") return ["stopped", `The server's time limit was reached ${after}.`];
      if (stopAsked) return ["stopped", `Stopped by you ${after}.`];
      return ["stopped", `Cancelled by the server or another reader ${after}.`];
    case "stopped":
      return ["stopped", `Stopped by you ${after}.${count ? " The page closed the connection; the server did not confirm the stop." : ""}`];
    case "failure":
      return ["error", ending.message + incomplete];
    case "refused":
      return ["error", TOO_LONG.includes(ending.code) ? FULL : ending.message];
    case "unreachable":
      return ["lost", "The server cannot be reached. Is it running?"];
    case "forgotten":
      return ["lost", count ? "The server no longer has the rest of this answer." : "The server no longer has this answer."];
    default:
      return ["lost", `The connection was lost ${after}${count ? "; the text above is incomplete" : ""}.${reasons(ending)}`];
  }
}

/** Return the server's reason for not resuming the stream, if it gave a reason. */
const reasons = ({ message }) => (message === undefined ? "" : ` The server said: ${message}`);

/** Return how often the stream was resumed, as the end of a status text. */
export function resumed({ numResumes: times }) {
  if (times === 0) return "";
  return ` Resumed ${["once", "twice"][times - 1] ?? `${times} times`}.`;
}

/** Return the sentence for a place in the queue. */
export function placed({ position, eta }) {
  const when = eta === null ? "" : `, about ${inSeconds(eta)} left`;
  return `Waiting in the queue: position ${position}${when}…`;
}

export const inSeconds = (s) => (s == null ? "–" : `${s.toFixed(s < 100 ? 1 : 0)} s`);
export const inMilliseconds = (s) => (s == null || s >= 1 ? inSeconds(s) : `${Math.round(s * 1000)} ms`);
export const inRate = (rate) => (rate == null ? "–" : rate.toFixed(rate < 100 ? 1 : 0));
