// The mode "Chat": a conversation with the model. In: clicks and keys, conversations that are kept, answers that
// run. Out: the transcript. It puts the other modules together; a model's text becomes nodes only in
// turn_view.js and markdown.js.
import { Conversation } from "./conversation.js";
import { fromFile, toJson, toMarkdown } from "./export.js";
import { Pipe } from "./pipe.js";
import { Run } from "./run.js";
import { watchServer } from "./server_state.js";
import { editSettings, markRefused, showDefaults } from "./settings_form.js";
import { setStage } from "./stage.js";
import { drawSidebar, setOpen, startSidebar } from "./sidebar.js";
import { hearOthers, keep, listConversations, loadConversation, removeConversation, removeTurns, tellOthers } from "./store.js";
import { TurnView } from "./turn_view.js";

const KEY_ITEM = "penstock.key"; // in sessionStorage, which belongs to one tab and ends with it
const SAVE_MS = 1000; // so much of a running answer is lost at most if the browser is killed

const at = (id) => document.getElementById(id);
const [transcript, turnList, prompt, status, key] = ["transcript", "turns", "prompt", "status", "key"].map(at);

const pipe = new Pipe(at("pipe"));
let conversation = new Conversation();
let model = "Model";
const views = new Map(); // the id of a turn that is shown → its view
const runs = new Map(); // the id of a turn → its Run, also of conversations that are not shown

/** Whether an answer runs here, in this tab or in another one. */
const isBusy = () => conversation.path().some((turn) => turn.state === "open");
const runHere = () => conversation.path().map((turn) => runs.get(turn.id)).find(Boolean);

// --- What is shown -----------------------------------------------------------------------------

/** Bring the transcript up to date. Views of turns that stay are not touched. */
function draw() {
  const path = conversation.path();
  const busy = isBusy();
  path.forEach((turn, number) => {
    let view = views.get(turn.id);
    if (view?.turn !== turn) {
      view?.node.remove();
      view = new TurnView(turn, actions, follow);
      views.set(turn.id, view);
    }
    const isLast = number === path.length - 1;
    view.update({ versions: conversation.versions(turn), model, isBusy: busy, isLast });
    if (turnList.children[number] !== view.node) turnList.insertBefore(view.node, turnList.children[number] ?? null);
  });
  for (const [id, view] of views) {
    if (path.some((turn) => turn.id === id)) continue;
    view.node.remove();
    views.delete(id);
  }
  at("welcome").hidden = path.length > 0;
  at("title").textContent = conversation.meta.title || "New conversation";
  document.title = conversation.meta.title ? `${conversation.meta.title} · Penstock` : "Penstock";
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  follow();
}

/** CSS and the pipe show the state. Screen readers read `sentence` aloud: once per state, never per token. */
function show(state, sentence, life = { kind: "idle" }) {
  document.body.dataset.state = state;
  if (status.textContent !== sentence) status.textContent = sentence;
  pipe.fill(["idle", "queued", "prefill"].includes(life.kind) ? 0 : 1);
  pipe.show(life);
  follow();
}

let following = true; // false while the reader has scrolled up

function follow() {
  if (following) transcript.scrollTop = transcript.scrollHeight;
}

transcript.addEventListener("scroll", () => {
  following = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 16;
});

// --- What is kept ------------------------------------------------------------------------------

/** Keep the conversation's own fields and these turns; say so if the browser does not allow it. */
async function save(turns, meta = conversation.meta) {
  try {
    await keep(meta, turns);
  } catch {
    status.textContent = "This browser does not let the page keep conversations. Export them before you leave.";
  }
}

/** Keep a change that other tabs and the list must know. */
async function saveAndTell(turns, meta = conversation.meta) {
  await save(turns, meta);
  tellOthers(meta.id);
  await drawSidebar(conversation.meta.id).catch(() => {});
}

/** Open a conversation by its id; without an id, or if it is not kept, begin a new one. */
async function open(id) {
  const kept = id ? await loadConversation(id).catch(() => null) : null;
  if (kept === null) conversation = new Conversation();
  else conversation = new Conversation(kept.meta, kept.turns.map((turn) => runs.get(turn.id)?.turn ?? turn));
  if (kept === null && location.hash) history.replaceState(null, "", "./");
  following = true;
  markAbandoned();
  draw();
  const run = runHere();
  if (run) show(run.state, run.sentence, run.life);
  else show("ready", "Ready.");
  followStreams();
  await drawSidebar(conversation.meta.id).catch(() => {});
}

/** Another tab changed a conversation: show the change, and follow an answer that it began. */
async function reload(id) {
  if (id === conversation.meta.id) {
    const kept = await loadConversation(id).catch(() => null);
    if (id !== conversation.meta.id) return;
    if (kept === null) return open(null);
    conversation = new Conversation(kept.meta, kept.turns.map(current));
    draw();
    followStreams();
  }
  await drawSidebar().catch(() => {});
}

const SHOWN = ["text", "state", "note", "stream"];

/** Return the turn that is shown already, if it runs here or nothing about it has changed. */
function current(turn) {
  const running = runs.get(turn.id)?.turn;
  const shown = views.get(turn.id)?.turn;
  return running ?? (shown && SHOWN.every((name) => shown[name] === turn[name]) ? shown : turn);
}

// --- Answers -----------------------------------------------------------------------------------

/** Follow the answers of this conversation that run, or that an earlier page did not read to the end. */
function followStreams() {
  for (const turn of conversation.turns.values()) {
    if (turn.stream !== null && !runs.has(turn.id)) start(turn, null);
  }
}

/** Mark the answers whose page was closed before they had a stream. Another tab may still wait for one: so the
    mark is not kept, and that tab's next change replaces it. */
function markAbandoned() {
  for (const turn of conversation.turns.values()) {
    if (turn.state !== "open" || turn.stream !== null || runs.has(turn.id)) continue;
    Object.assign(turn, { state: "lost", note: "The page was closed before the server had accepted the message." });
  }
}

/** Let the model answer after a turn. */
async function ask(parent) {
  const turn = conversation.add("assistant", "", parent.id);
  await start(turn, { ...conversation.meta.sampling, messages: conversation.messages(parent.id) }, [parent, turn]);
}

async function start(turn, fields, added = []) {
  const { meta } = conversation;
  let saving = null;
  const saveNow = () => {
    clearTimeout(saving);
    saving = null;
    return save([turn], null);
  };
  const run = new Run(turn, fields, key.value.trim(), {
    began: () => saveAndTell([turn], meta),
    grew(part, piece) {
      if (views.has(turn.id)) pipe.moved();
      views.get(turn.id)?.grow(part, piece);
      saving ??= setTimeout(saveNow, SAVE_MS);
    },
    changed(state, sentence, life) {
      if (runHere()?.turn === turn) show(state, sentence, life);
      if (state === "resuming" || state === "lost") look();
    },
    ended: (ending) => end(turn, meta, ending, saveNow),
  });
  runs.set(turn.id, run);
  draw();
  show(run.state, run.sentence, run.life);
  if (document.activeElement === at("send")) at("stop").focus();
  if (added.length) {
    if (location.hash !== `#${meta.id}`) history.pushState(null, "", `#${meta.id}`);
    await saveAndTell(added, meta);
  }
  await run.receive();
}

async function end(turn, meta, ending, saveNow) {
  runs.delete(turn.id);
  await saveNow();
  tellOthers(meta.id);
  if (conversation.meta.id !== meta.id) return;
  draw();
  const change = () => saveAndTell([], meta);
  if (ending.needsKey) askForKey();
  else markRefused(meta, ending.fields ?? [], change);
}

function askForKey() {
  at("key-field").hidden = false;
  key.select();
  key.focus();
}

async function send() {
  const text = prompt.value;
  if (text.trim() === "" || isBusy()) return;
  prompt.value = "";
  following = true;
  await ask(conversation.add("user", text, conversation.path().at(-1)?.id ?? null));
}

function stop() {
  runHere()?.stop();
}

const actions = {
  /** Another version of a message, with another answer. */
  edit: (turn, text) => ask(conversation.add("user", text, turn.parent)),
  /** Another answer. An answer without text is no version: it is replaced. */
  async regenerate(turn) {
    const parent = conversation.turns.get(turn.parent);
    if (turn.text === "" && turn.calls.length === 0) {
      await removeTurns(conversation.remove(turn).map(({ id }) => id)).catch(() => {});
    }
    await ask(parent);
  },
  async goOn(turn) {
    turn.prefix = turn.text;
    turn.note = "";
    const messages = conversation.messages(turn.id);
    views.get(turn.id)?.reopen();
    await start(turn, { ...conversation.meta.sampling, messages, continue_final_message: true }, [turn]);
  },
  async remove(turn) {
    const removed = conversation.remove(turn);
    for (const { id } of removed) runs.get(id)?.stop();
    draw();
    show("ready", "Deleted.");
    await removeTurns(removed.map(({ id }) => id)).catch(() => {});
    await saveAndTell([]);
  },
  async choose(turn) {
    conversation.choose(turn);
    draw();
    await saveAndTell([]);
  },
};

async function removeAll(id) {
  for (const run of runs.values()) if (run.turn.conversation === id) run.stop();
  await removeConversation(id).catch(() => {});
  tellOthers(id);
  if (id === conversation.meta.id) await open(null);
  else await drawSidebar();
}

// --- Files -------------------------------------------------------------------------------------

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = () => (conversation.meta.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation").slice(0, 60);

async function exportAll() {
  const metas = await listConversations();
  const all = await Promise.all(metas.map((meta) => loadConversation(meta.id)));
  download("penstock.json", "application/json", toJson(all.map(({ meta, turns }) => new Conversation(meta, turns))));
}

async function importFile(file) {
  try {
    const imported = fromFile(await file.text());
    for (const each of imported) await keep(each.meta, [...each.turns.values()]);
    location.hash = imported[0].meta.id;
    await drawSidebar();
  } catch (error) {
    show("error", error instanceof RangeError ? error.message : "The file cannot be read, or the browser keeps nothing.");
  }
}

// --- Events of the controls --------------------------------------------------------------------

const look = () => watchServer(at("server"), (name, stage) => {
  setStage(stage, () => runHere()?.turn.stream ?? null, (sentence) => (status.textContent = sentence));
  if (model === name) return;
  model = name;
  prompt.placeholder = `Write to ${name}`;
  at("greeted").textContent = name;
  draw();
});

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter may belong to the input method
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || at("settings").open || event.target.closest?.(".turn textarea")) return;
  if (document.body.classList.contains("listing")) setOpen(false);
  else stop();
});
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", () => {
  setOpen(false);
  history.pushState(null, "", "./");
  open(null);
  prompt.focus();
});
at("show-settings").addEventListener("click", () => {
  showDefaults(key.value.trim());
  editSettings(conversation.meta, () => {
    if (conversation.turns.size) saveAndTell([]); // a new conversation is kept with its first message
  });
});
at("export-markdown").addEventListener("click", () => download(`${fileName()}.md`, "text/markdown", toMarkdown(conversation, model)));
at("export-json").addEventListener("click", () => download(`${fileName()}.json`, "application/json", toJson([conversation])));
at("export-all").addEventListener("click", exportAll);
at("import").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => {
  if (at("file").files[0]) importFile(at("file").files[0]);
  at("file").value = "";
});
at("print").addEventListener("click", () => print());
for (const idea of document.querySelectorAll(".ideas button")) {
  idea.addEventListener("click", () => {
    prompt.value = idea.textContent;
    send();
  });
}
key.addEventListener("change", () => sessionStorage.setItem(KEY_ITEM, key.value.trim()));
key.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || isBusy()) return;
  const last = conversation.path().at(-1);
  prompt.focus(); // which keeps the key
  if (last?.state === "error" && last.role === "assistant") actions.regenerate(last);
});
addEventListener("hashchange", () => open(location.hash.slice(1)));
addEventListener("popstate", () => location.hash === "" && open(null));
addEventListener("pagehide", () => save([...runs.values()].map((run) => run.turn), null));
key.value = sessionStorage.getItem(KEY_ITEM) ?? "";
at("key-field").hidden = key.value === "";
startSidebar({ remove: removeAll });
hearOthers(reload);
look();
open(location.hash.slice(1));
if (matchMedia("(hover: hover)").matches) prompt.focus();
