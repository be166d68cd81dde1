// The live view: what the server does now, and did in the last five minutes. In: updates of live_feed.js, clicks,
// keys. Out: the DOM. Nothing that the server sends becomes markup.
import { inMilliseconds, inRate } from "./endings.js";
import { Feed } from "./live_feed.js";
import { inTime, Row } from "./live_row.js";
import { element } from "./nodes.js";
import { Plot, SECONDS } from "./plot.js";

const KEY_ITEM = "penstock.key"; // in sessionStorage, which belongs to one tab and ends with it
const SHOWN_AFTER_END_S = 5;
const MAX_ROWS = 500; // a longer table helps nobody, and slows the page down
const MAX_MARKS = 100;

const at = (id) => document.getElementById(id);
const [key, search, show, list] = ["key", "search", "show", "rows"].map(at);
const HINT = at("key-hint").textContent;
const feed = new Feed();
const rows = new Map(); // the id of a stream → its Row, in the order of their arrival
let seconds = [];
let marks = [];
let now = 0; // the server's time, in seconds

const plots = [
  [new Plot("Tokens/s", "", inRate), ({ time, tokens }) => ({ time, value: tokens })],
  [new Plot("First token", "median, p95", inMilliseconds), ({ time, ttft }) => pair(time, ttft)],
  [new Plot("Between tokens", "median, p95", inMilliseconds), ({ time, itl }) => pair(time, itl)],
];
at("plots").append(...plots.map(([plot]) => plot.node));

const pair = (time, both) => ({ time, value: both?.[0] ?? null, upper: both?.[1] ?? null });

// --- Updates -----------------------------------------------------------------------------------

function update({ kind, time, server, streams, seconds: newSeconds, marks: newMarks }) {
  now = time;
  if (kind === "snapshot") forget();
  for (const stream of streams) take(stream);
  seconds = [...seconds, ...newSeconds].filter((each) => each.time > now - SECONDS);
  if (newSeconds.length || kind === "snapshot") drawPlots(newMarks);
  if (newMarks.length) drawMarks(newMarks);
  delete document.body.dataset.stale;
  drawServer(server);
  drawRows();
}

function forget() {
  seconds = [];
  marks = [];
  at("marks").replaceChildren();
  rows.clear();
  list.replaceChildren();
}

function take(stream) {
  const row = rows.get(stream.id);
  if (row) row.stream = stream;
  else rows.set(stream.id, new Row(stream, cancel));
}

function drawServer({ model, process, processes, engine, engine_restarts: restarts, slots, running, waiting, draining, memory_full: isFull, store }) {
  const troubles = [draining && "draining", isFull && "memory full", store === "down" && "store down"].filter(Boolean);
  const scope = processes > 1 ? ` · one of ${processes} processes (${process})` : "";
  write(at("server"), `${model} · ${troubles.join(", ") || engine}${scope}`);
  write(at("running"), slots ? `${running} of ${slots}` : String(running));
  write(at("waiting"), String(waiting));
  write(at("engine"), engine + (restarts ? `, ${restarts} ${restarts === 1 ? "restart" : "restarts"}` : ""));
  at("engine").toggleAttribute("data-bad", engine !== "ready");
}

function drawPlots(newMarks) {
  for (const [plot, point] of plots) plot.draw(seconds.map(point), [...marks, ...newMarks], now);
}

function drawMarks(added) {
  marks = [...marks, ...added].slice(-MAX_MARKS);
  at("marks").prepend(...added.map(({ time, kind, text }) => {
    const when = new Date(1000 * time);
    const clock = element("time", { dateTime: when.toISOString(), textContent: when.toLocaleTimeString() });
    return element("li", { className: kind }, clock, element("span", { textContent: text }));
  }).reverse());
  while (at("marks").children.length > MAX_MARKS) at("marks").lastChild.remove();
  at("no-marks").hidden = true;
}

/** Show the rows that the filters let through. A row that stays is not touched, so it keeps its focus. */
function drawRows() {
  const text = search.value.trim().toLowerCase();
  let numShown = 0;
  let numMatching = 0;
  for (const [id, row] of rows) {
    const { state, since } = row.stream;
    const isGone = (state === "ended" || state === "moved") && now - since > SHOWN_AFTER_END_S;
    if (isGone && !row.node.contains(document.activeElement)) {
      rows.delete(id);
      row.node.remove();
      continue;
    }
    const matches = row.matches(show.value, text);
    numMatching += matches;
    if (!matches || numShown === MAX_ROWS) {
      row.node.remove();
      continue;
    }
    row.show(row.stream, now);
    if (list.children[numShown] !== row.node) list.insertBefore(row.node, list.children[numShown] ?? null);
    numShown += 1;
  }
  at("no-streams").hidden = numShown > 0;
  at("streams").hidden = numShown === 0;
  write(at("no-streams"), rows.size ? "No stream matches." : "No streams.");
  write(at("count"), numMatching > numShown ? `${numShown} of ${numMatching} shown` : "");
}

// --- The server --------------------------------------------------------------------------------

const headers = () => (key.value.trim() === "" ? {} : { Authorization: `Bearer ${key.value.trim()}` });

async function cancel(id) {
  try {
    const answer = await fetch(`streams/${encodeURIComponent(id)}`, { method: "DELETE", headers: headers() });
    if (answer.ok || answer.status === 404) return ""; // it has ended meanwhile
    return (await answer.json()).detail ?? "The server did not cancel it.";
  } catch {
    return "The server cannot be reached.";
  }
}

function lost(message) {
  document.body.dataset.stale = "";
  write(at("server"), message);
}

/** An update is also the proof that the key, if one was asked for, is the right one. */
function receive(message) {
  at("key-field").hidden = true;
  update(message);
}

function hint(status, message) {
  if (key.value.trim() === "") return status === 401 ? HINT : message;
  return `${status === 401 ? "The server does not know this key." : "This is no admin key."} ${HINT}`;
}

async function watch() {
  const { status, message } = await feed.watch(key.value.trim(), { update: receive, lost });
  lost("Not shown without an admin key.");
  at("key-field").hidden = false;
  at("key-hint").textContent = hint(status, message);
  key.select();
  key.focus();
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

at("key-field").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY_ITEM, key.value.trim());
  watch();
});
search.addEventListener("input", drawRows);
show.addEventListener("change", drawRows);
key.value = sessionStorage.getItem(KEY_ITEM) ?? "";
watch();
