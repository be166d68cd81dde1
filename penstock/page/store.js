// Keeps conversations in this browser (IndexedDB), and tells other tabs what has changed. In: conversations
// and turns as plain objects. Out: the same objects, in this tab or another one. Every function throws if the
// browser does not let the page keep anything.

const NAME = "penstock";
const VERSION = 1;
const channel = new BroadcastChannel(NAME);
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("turns", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => {
      const { result } = request;
      result.onversionchange = () => { // a newer page, in another tab, upgrades the database
        result.close();
        opened = null;
      };
      resolve(result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Run `work` with both stores in one transaction; return its result when everything is kept. */
async function transact(mode, work) {
  const transaction = (await database()).transaction(["conversations", "turns"], mode);
  const ended = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
  const result = await work(transaction.objectStore("conversations"), transaction.objectStore("turns"));
  await ended;
  return result;
}

/** Return the conversations without their turns, newest first. */
export async function listConversations() {
  const all = await transact("readonly", (conversations) => done(conversations.getAll()));
  return all.sort((a, b) => b.updated - a.updated);
}

/** Return `{meta, turns}` of a conversation, or null. */
export function loadConversation(id) {
  return transact("readonly", async (conversations, turns) => {
    const [meta, found] = await Promise.all([
      done(conversations.get(id)),
      done(turns.index("conversation").getAll(id)),
    ]);
    return meta ? { meta, turns: found } : null;
  });
}

/** Keep a conversation's own fields and some of its turns. */
export function keep(meta, turns = []) {
  return transact("readwrite", (conversations, kept) => {
    if (meta) conversations.put(meta);
    for (const turn of turns) kept.put(turn);
  });
}

export function removeTurns(ids) {
  return transact("readwrite", (_, turns) => {
    for (const id of ids) turns.delete(id);
  });
}

export function removeConversation(id) {
  return transact("readwrite", async (conversations, turns) => {
    conversations.delete(id);
    const ids = await done(turns.index("conversation").getAllKeys(id));
    for (const each of ids) turns.delete(each);
  });
}

/** Return the ids of the conversations that contain a text, in any case. */
export function search(text) {
  const wanted = text.toLocaleLowerCase();
  const has = (value) => value.toLocaleLowerCase().includes(wanted);
  return transact("readonly", async (conversations, turns) => {
    const [metas, all] = await Promise.all([done(conversations.getAll()), done(turns.getAll())]);
    return new Set([
      ...metas.filter((meta) => has(meta.title)).map((meta) => meta.id),
      ...all.filter((turn) => has(turn.text)).map((turn) => turn.conversation),
    ]);
  });
}

/** Tell the other tabs that a conversation has changed. */
export const tellOthers = (id) => channel.postMessage(id);

/** Call `changed(id)` when another tab has changed a conversation. */
export function hearOthers(changed) {
  channel.onmessage = ({ data }) => changed(data);
}
