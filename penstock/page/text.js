// The mode "Text": a form for the request, and the answer with its figures. In: clicks, keys, and the deltas
// and the ending of an answer. Out: the DOM. Not known here: HTTP, Server-Sent Events.
//
// The model's text only goes into Text nodes, so it cannot become markup. A reload keeps the running
// stream and the API key. It resets everything else: the controls, and a finished conversation.
import { Answer } from "./answer.js";
import { describe, inMilliseconds, inRate, inSeconds, placed, resumed } from "./endings.js";
import { forget, keep, recall } from "./kept.js";
import { Pipe } from "./pipe.js";
import { watchServer } from "./server_state.js";

const FIRST_PROMPT = { continue: "Once upon a time", chat: "Hello! Who are you?" };
const KEY_ITEM = "penstock.key"; // in sessionStorage, which belongs to one tab and ends with it
const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "seed"];
const TICK_MS = 100;

const at = (id) => document.getElementById(id);
const [form, prompt, output, status, key] = ["form", "prompt", "output", "status", "key"].map(at);
const [streamButton, completeButton, stopButton, clearButton] = ["stream", "complete", "stop", "clear"].map(at);

const pipe = new Pipe(at("pipe"));
let running = null; // the running Answer
let messages = []; // the conversation for the next request: only turns that ended
const drafts = { ...FIRST_PROMPT }; // each mode has its own text
let mode = "continue";

// --- The request -------------------------------------------------------------------------------

/** Return the fields of a request. Values out of bounds are included: the server checks them. */
function readSampling() {
  const fields = {};
  for (const name of NUMBERS) {
    const input = at(name);
    if (input.validity.badInput) throw new RangeError(`${labelOf(input)} is not a number.`);
    if (input.value !== "") fields[name] = input.valueAsNumber;
  }
  const stops = at("stop_strings").value.split("\n").filter((line) => line !== "");
  if (stops.length) fields.stop = stops.map(unescape);
  return fields;
}

const unescape = (line) => line.replace(/\\(n|t|\\)/g, (_, c) => ({ n: "\n", t: "\t", "\\": "\\" })[c]);
const labelOf = (input) => input.labels[0].textContent;
const inputOf = (field) => at(field === "stop" ? "stop_strings" : field.split(".")[0]);

/** Mark the inputs that the server named, and show its message in place of the bounds. */
function markInvalid(fields) {
  for (const { field, message } of fields) {
    const input = inputOf(field);
    if (!input?.matches(".field *") || input.hasAttribute("aria-invalid")) continue;
    const hint = input.nextElementSibling;
    hint.dataset.bounds ??= hint.textContent;
    hint.textContent = message.replace(`${field}: `, ""); // the label names the field
    input.setAttribute("aria-invalid", "true");
    at("sampling").open = true;
  }
}

function unmarkInvalid() {
  for (const input of form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    const hint = input.nextElementSibling;
    hint.textContent = hint.dataset.bounds ?? hint.textContent;
  }
}

function changeMode() {
  drafts[mode] = prompt.value;
  mode = form.elements.mode.value;
  prompt.value = drafts[mode];
  prompt.placeholder = mode === "chat" ? "Type a message" : "";
}

// --- A run, from the button to the ending ------------------------------------------------------

async function run(streamed) {
  if (running) return;
  unmarkInvalid();
  const asked = prompt.value;
  if (mode === "chat" && asked.trim() === "") return prompt.focus();
  let fields;
  try {
    fields = readSampling();
  } catch (error) {
    return show("error", error.message, { kind: "ended", reason: "error" });
  }
  const turn = openTurn(asked);
  if (turn.chat) fields.messages = [...messages, turn.question];
  else fields.prompt = asked;

  const limit = fields.max_tokens ?? 100;
  show("waiting", streamed ? "Waiting for the first token…" : "Waiting for the whole answer…", { kind: "prefill" });
  const watch = new Stopwatch(streamed, limit);
  if (streamed) receive((client, hooks) => client.stream(fields, hooks), turn, watch, limit);
  else finish(turn, await begin().request(fields), watch);
}

/** After a reload, show the prompt of the running stream and read its answer from the start. */
function restore() {
  const kept = recall();
  if (kept === null) return;
  form.elements.mode.value = kept.mode;
  changeMode();
  if (kept.mode === "continue") prompt.value = kept.asked;
  for (let at = 0; at < kept.messages.length; at += 2) {
    const turn = openTurn(kept.messages[at].content);
    turn.append(kept.messages[at + 1].content);
    turn.flush();
    turn.end("finished");
  }
  messages = kept.messages;
  const turn = openTurn(kept.asked);
  show("waiting", "Reading the answer again after the reload…", { kind: "prefill" });
  receive((client, hooks) => client.resume(kept.id, hooks), turn, new Stopwatch(true, kept.limit, true), kept.limit);
}

/** Return a new answer, which is the running one. */
function begin() {
  running = new Answer(key.value.trim());
  enableButtons();
  return running;
}

/** Receive the stream that `open` returns and show it, until the ending. */
async function receive(open, turn, watch, limit) {
  const answer = begin();
  const hooks = {
    onQueue: (place) => show("waiting", placed(place), { kind: "queued", place: place.position, seconds: place.eta }),
    onBegin: (id) => keep({ id, mode: turn.chat ? "chat" : "continue", asked: turn.question.content, messages, limit }),
    onCut() {
      show("resuming", "Connection lost; resuming…", { kind: "cut" });
      watchServer(at("server"));
    },
    onResume() {
      watchServer(at("server"));
      if (watch.count === 0) show("waiting", `Waiting for the first token…${resumed(answer)}`, { kind: "prefill" });
      else show("streaming", `Streaming…${resumed(answer)}`, { kind: "resumed" });
    },
  };
  const ending = await answer.read((client) => open(client, hooks), (text) => {
    if (watch.count === 0) show("streaming", `Streaming…${resumed(answer)}`, { kind: "flowing" });
    pipe.moved();
    watch.delta();
    turn.append(text);
  });
  finish(turn, ending, watch);
}

/** Show how the running answer ended. Add the turn to the conversation if it ended well. */
function finish(turn, ending, watch) {
  const answer = running;
  turn.append(ending.text ?? ""); // of a whole answer
  turn.flush();
  watch.end(ending);
  running = null;
  if (ending.kind !== "lost") forget(); // a reload may find a lost stream again
  const [state, sentence] = describe(ending, answer.stopAsked, watch.count);
  turn.end(state);
  const ended = state === "finished" || state === "stopped";
  if (turn.chat && ended && turn.text !== "") {
    messages.push(turn.question, { role: "assistant", content: turn.text });
  } else if (turn.chat && mode === "chat" && prompt.value === "") {
    prompt.value = turn.question.content; // ready to be sent again
  }
  show(state, sentence + resumed(answer), { kind: "ended", reason: state });
  markInvalid(ending.fields ?? []);
  if (ending.needsKey) askForKey();
  if (ending.kind === "lost" || ending.kind === "unreachable") watchServer(at("server"));
}

/** Show the field for the API key: the key is missing or wrong. */
function askForKey() {
  at("key-field").hidden = false;
  key.select();
  key.focus();
}

/** CSS and the pipe show the state. Screen readers read `sentence` aloud: once per state, never per token. */
function show(state, sentence, life = { kind: "idle" }) {
  pipe.show(life);
  document.body.dataset.state = state;
  status.textContent = sentence;
  enableButtons();
  follow(); // a longer text shrinks the output
}

function enableButtons() {
  for (const button of [streamButton, completeButton, clearButton]) disable(button, running !== null);
  disable(stopButton, running === null);
}

/** `aria-disabled` keeps the focus on a button that was just pressed; `disabled` would not. */
const disable = (button, yes) => button.setAttribute("aria-disabled", String(yes));

async function stop() {
  if (!running || running.stopAsked) return;
  const stopped = running.stop();
  status.textContent = "Stopping…";
  await stopped;
}

function clear() {
  if (running) return;
  forget();
  messages = [];
  output.replaceChildren();
  blankFigures();
  pipe.fill(0);
  unmarkInvalid();
  show("ready", "Ready.");
  prompt.focus();
}

// --- The answer --------------------------------------------------------------------------------

let following = true; // false while the user has scrolled up

function follow() {
  if (following) output.scrollTop = output.scrollHeight;
}

output.addEventListener("scroll", () => {
  following = output.scrollHeight - output.scrollTop - output.clientHeight < 8;
});

/** Show the prompt and return the turn that shows its answer. */
function openTurn(asked) {
  const chat = mode === "chat";
  if (!chat || !output.classList.contains("chat")) {
    messages = []; // the model gets only messages that the page still shows
    output.replaceChildren();
  }
  output.classList.toggle("chat", chat);
  if (chat) prompt.value = "";
  const answer = element("span", "answer");
  const question = element("span", "asked", asked);
  if (chat) output.append(element("p", "turn", question), element("p", "turn", answer));
  else output.append(element("p", "turn", question, answer));
  following = true;
  follow();
  output.parentElement.scrollIntoView({ block: "nearest" }); // on a phone the output is below the form
  return new Turn(chat, asked, answer);
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children); // strings become Text nodes
  return made;
}

/** A growing answer: one Text node, updated at most once per frame however fast deltas arrive. */
class Turn {
  #answer;
  #node = document.createTextNode("");
  #pending = "";
  #frame = 0;

  constructor(chat, asked, answer) {
    this.chat = chat;
    this.question = { role: "user", content: asked };
    this.#answer = answer;
    answer.append(this.#node);
    answer.dataset.end = "open";
  }

  get text() {
    return this.#node.data;
  }

  append(text) {
    this.#pending += text;
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#node.appendData(this.#pending);
    this.#pending = "";
    follow();
  }

  /** Mark the end of a text that was cut short. An empty answer gets no mark. */
  end(state) {
    delete this.#answer.dataset.end;
    if (this.text !== "" && state !== "finished") this.#answer.dataset.end = state;
  }
}

// --- Figures -----------------------------------------------------------------------------------

/** Measures a run on this page. At the end, the server's figures replace the page's own. */
class Stopwatch {
  count = 0; // deltas: each is one token, unless several tokens form one character
  #streamed;
  #limit;
  #isReplay;
  #begin = performance.now();
  #first = null;
  #last = null;
  #timer = setInterval(() => this.#draw(), TICK_MS);

  /** `isReplay`: the answer is read again, so the speed of its arrival means nothing. */
  constructor(streamed, limit, isReplay = false) {
    blankFigures();
    this.#streamed = streamed;
    this.#limit = limit;
    this.#isReplay = isReplay;
    this.#draw();
  }

  delta() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.count += 1;
  }

  end({ kind, usage, timings }) {
    clearInterval(this.#timer);
    const isNothing = kind === "forgotten" && this.count === 0;
    if (kind === "refused" || kind === "unreachable" || isNothing) return blankFigures();
    this.#draw();
    if (usage) {
      this.count = usage.completion_tokens;
      figure("tokens", this.count, "by the server");
      at("tokens-prompt").textContent = ` · prompt ${usage.prompt_tokens}`;
      this.#fill();
    }
    if (!timings) return;
    const { time_to_first_token: first, tokens_per_second: rate, total_time: total } = timings;
    figure("first", inMilliseconds(first), first == null ? "" : "by the server");
    figure("rate", inRate(rate), rate == null ? "" : "by the server");
    figure("elapsed", inSeconds(total), "by the server");
  }

  #draw() {
    figure("tokens", ...(this.#streamed ? [this.count, "by this page"] : ["–", ""]));
    this.#fill();
    if (this.#isReplay) return;
    const gap = this.#last - this.#first;
    const first = this.#first === null ? null : (this.#first - this.#begin) / 1000;
    figure("first", inMilliseconds(first), first === null ? "" : "by this page");
    figure("rate", inRate(gap > 0 ? ((this.count - 1) / gap) * 1000 : null), gap > 0 ? "by this page" : "");
    figure("elapsed", inSeconds((performance.now() - this.#begin) / 1000), "by this page");
  }

  #fill() {
    pipe.fill(Math.min(1, this.count / this.#limit));
  }
}

function figure(name, value, source) {
  at(name).textContent = value;
  at(`${name}-source`).textContent = source;
}

function blankFigures() {
  for (const name of ["first", "rate", "tokens", "elapsed"]) figure(name, "–", "");
  at("tokens-prompt").textContent = "";
}

// --- Events of the controls --------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run(true);
});
completeButton.addEventListener("click", () => run(false));
stopButton.addEventListener("click", stop);
clearButton.addEventListener("click", clear);
key.addEventListener("change", () => sessionStorage.setItem(KEY_ITEM, key.value.trim()));
for (const radio of form.elements.mode) radio.addEventListener("change", changeMode);
document.addEventListener("keydown", (event) => {
  if (event.isComposing) return; // Enter and Escape belong to the input method
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault(); // on a button, Enter would also press the button
    run(true);
  }
});
key.value = sessionStorage.getItem(KEY_ITEM) ?? "";
at("key-field").hidden = key.value === "";
at("sampling").open = matchMedia("(min-width: 56rem)").matches; // if there is room for them
watchServer(at("server"));
restore();
