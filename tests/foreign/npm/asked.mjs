// The same as sdks/asked.py, for SDKs in JavaScript.

import { randomUUID } from "node:crypto";
import { rmSync, writeFileSync } from "node:fs";

export const TASK = JSON.parse(process.env.SDK_TASK);
const CHAT = "/v1/chat/completions";
const PATIENCE_MS = 60_000;
const CLIENT = { url: TASK.url, model: "telling", key: TASK.keys.user, retries: 0, headers: {} };
const REAL = { ...CLIENT, url: TASK.model_url, model: "rill" };

export const getWeather = ({ city }) => `21 degrees in ${city}`;

/** Do everything with each form and print the report: {form: {task: result}}. */
export async function report(forms) {
  const results = {};
  for (const [name, form] of Object.entries(forms)) {
    results[name] = {};
    for (const task of TASKS) results[name][task.name] = await tried(task, form);
  }
  console.log("\n" + JSON.stringify(results));
  process.exit(0); // some SDKs keep connections open
}

async function tried(task, form) {
  try {
    return await task(form);
  } catch (error) {
    return { raised: String(error?.stack ?? error) };
  }
}

async function joinedPieces(pieces) {
  const all = [];
  for await (const piece of pieces) all.push(piece);
  return all;
}

const user = (content) => [{ role: "user", content }];
const marked = (mark) => user(`${mark}-${randomUUID().replaceAll("-", "")} ${"word ".repeat(40)}`);

async function whole(form) {
  return form.ask(CLIENT, TASK.turns);
}

async function streamed(form) {
  const pieces = await joinedPieces(form.stream(CLIENT, TASK.turns));
  return { text: pieces.join(""), is_streamed: pieces.length > 5 };
}

async function tool(form) {
  return form.useTool(CLIENT, user("What is the weather in Bonn?"));
}

async function structured(form) {
  const { name, is_alive } = await form.person(REAL, user("Who wrote the first program?"));
  return ["Ada", "Grace"].includes(name) && typeof is_alive === "boolean";
}

async function refused(form) {
  const long = user("word ".repeat(9000));
  return {
    401: await nameOfError(() => form.ask({ ...CLIENT, key: "psk_wrong_wrong_wrong" }, TASK.turns)),
    400: await nameOfError(() => form.ask(CLIENT, long)),
    429: await nameOfError(() => form.ask({ ...CLIENT, key: TASK.keys.full }, TASK.turns)),
  };
}

async function retried(form) {
  const held = await hold(TASK.keys.busy);
  const began = performance.now();
  const { text } = await form.ask({ ...CLIENT, key: TASK.keys.busy, retries: 10 }, TASK.turns);
  const waited = performance.now() - began >= 1000;
  await held.isLetGo;
  return { text, waited };
}

async function joined(form) {
  const headers = { "Idempotency-Key": randomUUID() };
  const server = { ...CLIENT, url: TASK.cut_url, key: TASK.keys.once, retries: 3, headers };
  return (await form.ask(server, marked("cut-whole"))).text;
}

async function cut(form) {
  const server = { ...CLIENT, url: TASK.cut_url };
  return { raised: await nameOfError(() => joinedPieces(form.stream(server, marked("cut-stream")))) };
}

async function killed(form) {
  writeFileSync(TASK.die, ""); // the engine removes it, and dies
  try {
    return (await joinedPieces(form.stream(REAL, TASK.story))).join("");
  } finally {
    rmSync(TASK.die, { force: true });
  }
}

const TASKS = [whole, streamed, tool, structured, refused, retried, joined, cut, killed];

async function nameOfError(run) {
  try {
    await run();
  } catch (error) {
    return error.constructor.name;
  }
  return null;
}

/** Hold the only stream that `key` may have, until the key's next request was refused. */
async function hold(key) {
  const held = new AbortController();
  await fetch(TASK.url + CHAT, {
    method: "POST",
    headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
    body: JSON.stringify({ messages: user("hold"), stream: true }),
    signal: held.signal,
  });
  const before = await numRefused();
  const letGo = async () => {
    const deadline = performance.now() + PATIENCE_MS;
    while ((await numRefused()) === before && performance.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    held.abort();
  };
  return { isLetGo: letGo() }; // in an object: a promise would be awaited here
}

async function numRefused() {
  const headers = { Authorization: `Bearer ${TASK.keys.admin}` };
  const text = await (await fetch(`${TASK.url}/metrics`, { headers })).text();
  return text.split("\n").find((line) => line.includes('key_refusals_total{key="busy"}'));
}
