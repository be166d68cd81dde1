// Reads one answer with the client, and tells each thing that happens. In: the client's modules, and what is
// asked, as JSON: {settings, call, input, options, stops: {"3": "cancel"}}. Out: calls of `tell`.
// Tests run it in Node, Deno and Chromium.

/** Call `tell` with [what, value] for each callback and delta, and at last with ["end" or "error", about]. */
export async function read({ Penstock, PenstockError }, asked, tell) {
  const { settings, call, input, options = {}, stops = {} } = asked;
  const abort = new AbortController();
  const callbacks = { onBegin: "begin", onCut: "cut", onResume: "resume", onQueue: "queue", onStatus: "status" };
  let stream = null;
  const stop = {
    cancel: () => stream.cancel(),
    close: () => stream.close(),
    abort: () => abort.abort(new Error("enough")),
  };
  for (const [name, what] of Object.entries(callbacks)) {
    if (name === "onStatus" && !asked.statuses) continue;
    options[name] = (value) => {
      tell([what, value ?? null]);
      stop[stops[what]]?.();
    };
  }
  try {
    const client = new Penstock(settings);
    if (call === "generate") return tell(["end", await client.generate(input, options)]);
    stream = client[call](input, { ...options, signal: abort.signal });
    await stop[stops[0]]?.();
    let count = 0;
    for await (const delta of stream) {
      tell(["delta", delta]);
      count += 1;
      if (stops[count] === "break") break;
      await stop[stops[count]]?.();
    }
    tell(["end", figures(stream)]);
  } catch (error) {
    const { name, message, cause, headers, ...fields } = error;
    const kind = { isPenstockError: error instanceof PenstockError, requestId: error.requestId };
    tell(["error", { name, message: error.message, cause: error.cause?.name ?? null, ...kind, ...fields, stream: figures(stream) }]);
  }
}

function figures(stream) {
  if (stream === null) return null;
  const { id, text, lastEventId, numResumes, finishReason, usage, timings } = stream;
  return { id, text, lastEventId, numResumes, finishReason, usage, timings };
}
