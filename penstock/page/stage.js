// The stage: buttons that break things, on a server that lets the page do so (`--demo`). The server really
// closes the connection, and kills or stops the engine's process; this page really reads slowly. In: clicks,
// and the stream that is shown. Out: requests, and a sentence. Not known here: how an answer survives.

const SLOW_BYTES = 250; // one token of a chat, about
const SLOW_MS = 165; // the pause after each
const NO_STREAM = "There is no running answer to do that to. Send a message first.";

let hasStage = false;
let isSlow = false;
let hurry = () => {}; // ends the pause of a slow reader
const at = (deed) => document.querySelector(`[data-deed="${deed}"]`);

/**
 * Offer the stage if the server has one. `streamOf` returns the id of the running stream, or null; `tell` shows a
 * sentence.
 */
export function setStage(stage, streamOf, tell) {
  const [show, menu] = ["show-stage", "stage"].map((id) => document.getElementById(id));
  if (stage === undefined || !show.hidden) return;
  show.hidden = false;
  hasStage = true;
  show.addEventListener("click", () => {
    menu.hidden = !menu.hidden;
    show.setAttribute("aria-expanded", String(!menu.hidden));
  });
  const limit = `${stage.engine_timeout} s`;
  const deeds = {
    async cut() {
      const id = streamOf();
      if (id === null) return tell(NO_STREAM);
      await act(`cut?stream=${encodeURIComponent(id)}`, null, tell);
    },
    // A running answer says by itself what happens to it, when the page has read so far.
    kill() {
      at("thaw").disabled = true;
      const speaksForItself = streamOf() !== null && !isSlow;
      return act("kill", speaksForItself ? null : `The engine's process was killed, and is started again.${later()}`, tell);
    },
    freeze() {
      at("thaw").disabled = false;
      return act("freeze", `The engine's process is frozen. After ${limit} of silence it is restarted.${later()}`, tell);
    },
    thaw() {
      at("thaw").disabled = true;
      return act("thaw", "The engine's process may go on.", tell);
    },
    slow() {
      setSlow(!isSlow);
      const [slow, fast] = ["The engine does not wait for it. Press the button again for full speed.", "This page reads at full speed again."];
      tell(isSlow ? `This page reads slowly now. ${slow}` : fast);
    },
  };
  for (const button of menu.querySelectorAll("[data-deed]")) {
    button.addEventListener("click", () => deeds[button.dataset.deed]());
  }
}

const later = () => (isSlow ? " This page reads slowly, so it sees the effect later." : "");

/** Read slowly from now on, or at full speed. */
export function setSlow(slow) {
  if (!hasStage) return;
  isSlow = slow;
  if (!isSlow) hurry();
  at("slow").setAttribute("aria-pressed", String(isSlow));
}

async function act(path, done, tell) {
  try {
    const answer = await fetch(`stage/${path}`, { method: "POST" });
    if (!answer.ok) tell((await answer.json()).detail);
    else if (done !== null) tell(done);
  } catch {
    tell("The server cannot be reached.");
  }
}

/** As `fetch`, but a stream stands behind this page as behind a slow network, if the user asks for that. */
export async function stagedFetch(...request) {
  const response = await fetch(...request);
  if (!hasStage || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
  const { status, headers } = response;
  return new Response(response.body.pipeThrough(slowly()), { status, headers });
}

/** Return a stream that passes bytes on, a few at a time while the page reads slowly. */
function slowly() {
  return new TransformStream(
    {
      async transform(bytes, controller) {
        let at = 0;
        while (isSlow && at < bytes.length) {
          controller.enqueue(bytes.subarray(at, at + SLOW_BYTES));
          at += SLOW_BYTES;
          await pause();
        }
        if (at < bytes.length) controller.enqueue(bytes.subarray(at));
      },
    },
    { highWaterMark: 1 },
    { highWaterMark: 0 }, // take no more than is read
  );
}

function pause() {
  return new Promise((resolve) => {
    hurry = resolve;
    setTimeout(resolve, SLOW_MS);
  });
}
