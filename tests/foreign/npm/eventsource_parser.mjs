// eventsource-parser over fetch, with a loop of its user's that resumes after a cut.

import { EventSourceParserStream } from "eventsource-parser/stream";
import { randomUUID } from "node:crypto";
import { TASK } from "./asked.mjs";

const headers = { Authorization: `Bearer ${TASK.keys.user}`, "Content-Type": "application/json" };
const words = "word ".repeat(40);
const prompt = `cut-stream-${randomUUID().replaceAll("-", "")} ${words}`;
const body = JSON.stringify({ prompt, resumable: true });

async function send(lastEventId) {
  const resumed = lastEventId ? { "Last-Event-ID": lastEventId } : {};
  const asked = { method: "POST", headers: { ...headers, ...resumed }, body };
  const response = await fetch(`${TASK.cut_url}/generate`, asked);
  return response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
}

let text = "";
let lastEventId = "";
let isFinished = false;
let numRequests = 0;
while (!isFinished) {
  numRequests += 1;
  try {
    for await (const { id, data } of await send(lastEventId)) {
      const { token, finished } = JSON.parse(data);
      isFinished = finished;
      if (!finished) text += token;
      lastEventId = id;
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // fetch's, for a connection that was cut
  }
}
console.log("\n" + JSON.stringify({ text, num_requests: numRequests }));
