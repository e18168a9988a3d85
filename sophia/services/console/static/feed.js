// Changes as they become searchable, from the event stream. Repeats are dropped, nothing is missed: a stream that
// breaks is resumed after the last batch that was seen.

import { byId, clock, count, duration, el, keyText } from "./dom.js";
import { openProvenance } from "./provenance.js";

const MOST_ENTRIES = 120;
const MOST_KEYS = 5;
const MOST_BULK_KEYS = 2;
const MOST_SEEN = 10_000;
const RETRY_MS = 2_000;

const seen = new Set();
const held = [];
let lastId = null;
let paused = false;

function keyButton(batch, key) {
  const deleted = key.startsWith("-");
  const bare = deleted ? key.slice(1) : key;
  return el("button", {
    type: "button", class: deleted ? "key deleted" : "key", title: "Where it came from",
    "aria-label": `${deleted ? "deleted" : "changed"} ${keyText(bare)}, show its provenance`,
    onclick: () => openProvenance(batch.index, bare),
  }, `${deleted ? "−" : "+"} ${keyText(bare)}`);
}

function words(batch) {
  const parts = [];
  if (batch.embedded) parts.push(`${count(batch.embedded)} embedded`);
  if (batch.reused) parts.push(`${count(batch.reused)} reused`);
  if (batch.deleted) parts.push(`${count(batch.deleted)} deleted`);
  return parts.join(", ") || `${count(batch.documents)} parked`;
}

function entry(batch) {
  const keys = batch.keys.slice(0, batch.lane === "live" ? MOST_KEYS : MOST_BULK_KEYS);
  const more = batch.documents - keys.length;
  return el("li", { class: batch.lane === "live" ? "live" : "bulk", "data-batch": batch.id },
    el("div", { class: "line" },
      el("time", { datetime: batch.applied_at, title: batch.applied_at }, clock(batch.applied_at, true)),
      el("span", { class: "index" }, batch.index),
      el("span", { class: batch.lag_ms !== null && batch.lag_ms > 100 ? "lag slow" : "lag" },
        batch.lag_ms === null ? batch.lane : duration(batch.lag_ms))),
    el("div", { class: "line" },
      el("span", { class: "keys" }, ...keys.map((key) => keyButton(batch, key)), more > 0 ? el("span", { class: "more" }, `and ${count(more)} more`) : null),
      el("span", { class: "what" }, words(batch))));
}

function show(nodes) {
  const list = byId("feed");
  byId("feed-empty").hidden = true;
  list.prepend(...nodes.reverse());
  while (list.children.length > MOST_ENTRIES) list.lastElementChild.remove();
}

function state(text, mood) {
  const pill = byId("feed-state");
  if (pill.textContent !== text) pill.textContent = text;
  pill.className = `pill ${mood}`;
}

function togglePause() {
  paused = !paused;
  const button = byId("feed-pause");
  button.setAttribute("aria-pressed", String(paused));
  button.textContent = paused ? "Resume" : "Pause";
  if (!paused) show(held.splice(0).map(entry));
}

export function start(onBatch) {
  byId("feed-pause").addEventListener("click", togglePause);
  connect(onBatch);
}

function connect(onBatch) {
  // The browser sends Last-Event-ID when it reconnects by itself; a stream that we open anew says it in the address.
  const stream = new EventSource(lastId === null ? "/api/events" : `/api/events?after=${lastId}`);
  stream.addEventListener("open", () => state("live", "good"));
  stream.addEventListener("batch", (event) => {
    const batch = JSON.parse(event.data);
    lastId = batch.id;
    if (seen.has(batch.id)) return;
    seen.add(batch.id);
    if (seen.size > MOST_SEEN) seen.delete(seen.values().next().value);
    if (paused) {
      held.push(batch);
      if (held.length > MOST_ENTRIES) held.shift();
      byId("feed-pause").textContent = `Resume (${count(held.length)})`;
    } else {
      show([entry(batch)]);
    }
    onBatch(batch);
  });
  stream.addEventListener("gap", () => show([el("li", { class: "gap" }, "Earlier changes are not shown")]));
  stream.addEventListener("error", () => {
    state("reconnecting", "warn");
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS, onBatch);
  });
}
