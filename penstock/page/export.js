// Conversations as files: JSON with everything, Markdown to read. In: conversations, or a file's text. Out: a
// file's text, or conversations with new ids. Not known here: the DOM.
import { Conversation, newId, newMeta, titleOf } from "./conversation.js";

const FORMAT = 1;
const MAX_TURNS = 100_000;
const ROLES = new Set(["user", "assistant"]);
const MARK = /^<!-- penstock: (system|user|assistant) -->$/;

/** Return JSON with all versions of all turns. */
export function toJson(conversations) {
  const all = conversations.map(({ meta, turns }) => ({ ...meta, turns: [...turns.values()] }));
  return JSON.stringify({ penstock: FORMAT, conversations: all }, null, 1);
}

/** Return the turns that are shown as Markdown. Comments mark where a turn begins. */
export function toMarkdown(conversation, model) {
  const { title, system } = conversation.meta;
  const parts = [`# ${title || "Conversation"}`];
  if (system !== "") parts.push(`<!-- penstock: system -->\n## System\n\n${system}`);
  for (const { role, text } of conversation.path()) {
    parts.push(`<!-- penstock: ${role} -->\n## ${role === "user" ? "You" : model}\n\n${text.trim()}`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Return the conversations in a file. Throws RangeError, with a sentence, if there are none. */
export function fromFile(text) {
  const conversations = text.trimStart().startsWith("{") ? fromJson(text) : fromMarkdown(text);
  if (conversations.length === 0) throw new RangeError("The file has no conversations.");
  return conversations;
}

function fromJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new RangeError("The file is not JSON.");
  }
  if (file?.penstock !== FORMAT || !Array.isArray(file.conversations)) throw new RangeError("The file is not an export of this page.");
  return file.conversations.map(imported);
}

/** Return a conversation of a file, with new ids. Fields of other types are left out. */
function imported(given) {
  const meta = newMeta();
  const turns = Array.isArray(given?.turns) ? given.turns.slice(0, MAX_TURNS) : [];
  const ids = new Map(turns.map((turn) => [turn?.id, newId()]));
  Object.assign(meta, { title: string(given?.title).slice(0, 200), system: string(given?.system), sampling: numbers(given?.sampling) });
  for (const name of ["created", "updated"]) if (Number.isFinite(given?.[name])) meta[name] = given[name];
  for (const [parent, child] of Object.entries(given?.chosen ?? {})) {
    if (ids.has(child)) meta.chosen[ids.get(parent) ?? ""] = ids.get(child);
  }
  const conversation = new Conversation(meta, turns.filter((turn) => ROLES.has(turn?.role)).map((turn, at) => ({
    id: ids.get(turn.id), conversation: meta.id, parent: ids.get(turn.parent) ?? null, role: turn.role,
    text: string(turn.text), reasoning: string(turn.reasoning), calls: calls(turn.calls), state: "finished",
    note: string(turn.note), stream: null, prefix: "", created: Number.isFinite(turn.created) ? turn.created : at,
  })));
  meta.title ||= titleOf(conversation.path()[0]?.text ?? "");
  return conversation;
}

const string = (value) => (typeof value === "string" ? value : "");
const numbers = (value) => Object.fromEntries(Object.entries(value ?? {}).filter(([, each]) => Number.isFinite(each)));
const calls = (value) => (Array.isArray(value) ? value : []).map((call) => ({ name: string(call?.name), arguments: string(call?.arguments) }));

function fromMarkdown(text) {
  const conversation = new Conversation();
  let parent = null;
  let role = null;
  let lines = [];
  const take = () => {
    const content = lines.join("\n").replace(/^\s*## [^\n]*\n/, "").trim();
    if (role === "system") conversation.meta.system = content;
    else if (role !== null) parent = conversation.add(role, content, parent).id;
    lines = [];
  };
  for (const line of text.split(/\r?\n/)) {
    const mark = MARK.exec(line);
    if (mark) {
      take();
      role = mark[1];
    } else {
      lines.push(line);
    }
  }
  take();
  // Turns of one moment keep their order.
  [...conversation.turns.values()].forEach((turn, at) => (turn.created += at));
  const title = /^# (.+)$/m.exec(text)?.[1];
  if (title) conversation.meta.title = title.slice(0, 200);
  return parent === null ? [] : [conversation];
}
