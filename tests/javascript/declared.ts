// tsc accepts this file if what index.d.ts declares is what the modules are, and if a program that uses them
// as the README does has the types that it expects.
import type * as declared from "penstock-client";
import { CutStreamError, Penstock, RefusedError, type ChatDelta, type Stream } from "penstock-client";

import * as errors from "../../clients/javascript/src/errors.js";
import * as actual from "../../clients/javascript/src/penstock.js";

export const constructed: typeof declared.Penstock = actual.Penstock;
export const refused: (error: errors.RefusedError) => declared.RefusedError = (error) => error;
export const failed: (error: errors.FailedStreamError) => declared.FailedStreamError = (error) => error;
export const cut: (error: errors.CutStreamError) => declared.CutStreamError = (error) => error;

export async function use(signal: AbortSignal): Promise<number> {
  const client = new Penstock({ url: "http://127.0.0.1:8000", key: "secret", retries: 2, backoff: { maxMs: 100 } });
  const stream: Stream<string> = client.stream({ prompt: "Hi", max_tokens: 3 }, { signal, onQueue: ({ position }) => position });
  try {
    for await (const text of stream) text.toUpperCase();
  } catch (error) {
    if (error instanceof RefusedError) return error.retryAfterMs ?? error.status;
    if (error instanceof CutStreamError) return error.text.length;
  }
  const chat: Stream<ChatDelta> = client.chat({ messages: [{ role: "user", content: "Hi" }] });
  for await (const { content, calls } of chat) content?.length ?? calls?.[0]?.function.name;
  // @ts-expect-error A request has no such option.
  client.stream({ prompt: "Hi", maxTokens: 3 });
  return stream.usage?.total_tokens ?? 0;
}
