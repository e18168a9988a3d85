// The cards of the indexes, the line that sums them up, captures and dead letters.

import { api, byId, clock, count, duration, el, keyText, moment, showDialog, time } from "./dom.js";
import { LagPlot } from "./plot.js";

const POLL_MS = 5_000;
const SHORTEST_MS = 1_000;

const cards = new Map();
let last = 0;

// Where an index stands, in one sentence that can be checked, and how bad it is.
export function proof(status, capture) {
  const at = status.source_lsn
    ? [" at LSN ", el("code", {}, status.source_lsn), ...(status.source_time ? [", committed ", moment(status.source_time)] : [])]
    : [];
  if (status.backlog > 0) {
    const word = status.indexer_running ? "waiting for the indexer" : "waiting: no indexer runs";
    return [status.indexer_running ? "warn" : "bad", [`${count(status.backlog)} change${status.backlog === 1 ? "" : "s"} ${word}`, ...at]];
  }
  if (status.shards_behind > 0) {
    return ["warn", [`Comparing: ${count(status.shards_behind)} of ${count(status.shards)} shards to go`, ...at]];
  }
  if (!status.source_lsn) return ["warn", ["Nothing captured yet"]];
  if (capture?.running === false) return ["warn", ["Level with the inbox; the capture does not run", ...at]];
  if (!status.indexer_running) return ["warn", ["Level; no indexer runs, so it will not stay so", ...at]];
  return ["good", ["Level with source", ...at]];
}

function figure(label, value, mood) {
  return el("div", { class: mood ?? null }, el("dt", {}, label), el("dd", {}, value));
}

class Card {
  constructor(name) {
    this.plot = new LagPlot(name);
    this.head = el("div", { class: "head" });
    this.lag = el("p", { class: "lag" });
    this.figures = el("dl", { class: "figures" });
    this.proof = el("p", { class: "proof" });
    this.made = el("p", { class: "made" });
    this.building = el("p", { class: "building", hidden: true });
    this.element = el("article", { class: "card", "aria-label": `Index ${name}` },
      this.head, this.lag, this.plot.element, this.figures, this.proof, this.building, this.made);
    api(`/api/lag?index=${encodeURIComponent(name)}&limit=90`).then((answer) => this.plot.set(answer.batches)).catch(() => {});
  }

  update(status, capture, others) {
    const [mood, words] = proof(status, capture);
    this.element.dataset.mood = mood;
    this.head.replaceChildren(
      el("h3", {}, status.index),
      el("span", { class: "pill" }, `v${status.version}`),
      el("span", { class: "pill" }, status.store));
    const [value, unit] = duration(status.lag_p50_ms).split(" ");
    this.lag.replaceChildren(
      el("strong", {}, value), el("span", { class: "unit" }, unit ?? ""),
      el("span", { class: "note" }, el("span", {}, "median, commit to searchable"), el("span", {}, `p95 ${duration(status.lag_p95_ms)}`)));
    this.figures.replaceChildren(
      figure("rows", count(status.indexed)),
      figure("vectors", count(status.chunks)),
      figure("backlog", count(status.backlog), status.backlog ? "warn" : null),
      ...(status.pending ? [figure("pending", count(status.pending), "warn")] : []),
      figure("parked", count(status.parked), status.parked ? "bad" : null));
    this.proof.replaceChildren(el("span", { class: `dot ${mood}` }), el("span", {}, ...words));
    this.made.replaceChildren(`${status.model} · ${status.dimension} dimensions · `, el("code", { title: "fingerprint" }, status.fingerprint));
    this.building.hidden = others.length === 0;
    this.building.textContent = others
      .map((other) => `v${other.version} ${other.state}: ${Math.round(100 * (1 - other.shards_behind / Math.max(1, other.shards)))} % compared`)
      .join(" · ");
    return mood;
  }
}

function summarise(moods, total) {
  const level = moods.filter((mood) => mood === "good").length;
  const mood = moods.includes("bad") ? "bad" : level === total ? "good" : "warn";
  const words = total === 0
    ? "No index yet: run `sophia up`"
    : level === total
      ? (total === 1 ? "The index is level with its source" : `All ${total} indexes are level with their sources`)
      : `${level} of ${total} indexes level`;
  byId("summary").replaceChildren(el("span", { class: `dot ${total ? mood : "warn"}` }), el("span", {}, words));
}

// A collection that Estuary feeds: up to when nothing is missing, beside what the source said last.
function waiting(collection) {
  const words = [collection.name];
  if ("watermark" in collection) words.push(collection.watermark ? `complete up to ${moment(collection.watermark)}` : "not known to be complete");
  if (collection.source_time) words.push(`source at ${moment(collection.source_time)}`);
  if (collection.rereads) words.push(`${count(collection.rereads)} to read again`);
  if (collection.parked) words.push(`${count(collection.parked)} parked`);
  return el("span", { title: `position ${collection.position}` },
    el("span", { class: `dot ${collection.rereads || collection.parked || !collection.watermark ? "warn" : "good"}` }), words.join(" · "));
}

function render(status) {
  const captures = new Map(status.captures.map((capture) => [capture.source, capture]));
  const serving = status.indexes.filter((index) => index.state === "serving");
  const moods = [];
  for (const index of serving) {
    let card = cards.get(index.index);
    if (!card) cards.set(index.index, card = new Card(index.index));
    const others = status.indexes.filter((other) => other.index === index.index && other !== index);
    moods.push(card.update(index, captures.get(index.source), others));
  }
  const names = serving.map((index) => index.index);
  for (const name of cards.keys()) if (!names.includes(name)) cards.delete(name);
  const wanted = names.map((name) => cards.get(name).element);
  const box = byId("indexes");
  if (wanted.length !== box.children.length || wanted.some((node, number) => box.children[number] !== node)) box.replaceChildren(...wanted);
  box.setAttribute("aria-busy", "false");
  summarise(moods, serving.length);
  byId("captures").replaceChildren(...status.captures.map((capture) => el("span", { title: `slot ${capture.slot}, confirmed LSN ${capture.confirmed_lsn}` },
    el("span", { class: `dot ${capture.running === false ? "warn" : "good"}` }),
    `${capture.source} · ${capture.running === false ? "stopped" : "capturing"} ${capture.complete}/${capture.tables} tables`)),
  ...status.collections.filter((collection) => "watermark" in collection || collection.rereads).map(waiting));
  const button = byId("dead-letters-open");
  button.hidden = status.dead_letters === 0;
  button.textContent = `${count(status.dead_letters)} dead letter${status.dead_letters === 1 ? "" : "s"}`;
}

export async function refresh() {
  last = performance.now();
  try {
    render(await api("/api/status"));
    performance.mark("status-rendered");
  } catch (error) {
    byId("summary").replaceChildren(el("span", { class: "dot bad" }), el("span", {}, error.message));
  }
}

// A batch from the feed: its bar at once, the figures soon.
let soon = null;
export function noteBatch(batch) {
  if (batch.lag_ms !== null && batch.lane === "live") cards.get(batch.index)?.plot.push({ ...batch, batch: batch.id });
  soon ??= setTimeout(() => {
    soon = null;
    refresh();
  }, Math.max(50, SHORTEST_MS - (performance.now() - last)));
}

async function showDeadLetters() {
  const { dead_letters: letters } = await api("/api/dead-letters");
  const rows = letters.map((letter) => el("tr", {},
    el("td", {}, time(letter.last_seen)), el("td", {}, letter.collection ?? "–"), el("td", {}, letter.key ? keyText(letter.key) : "–"),
    el("td", {}, letter.index ? `${letter.stage}: ${letter.index}` : letter.stage), el("td", {}, letter.reason), el("td", {}, count(letter.attempts))));
  showDialog("Dead letters", el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...["Last seen", "Collection", "Key", "Stage", "Reason", "Attempts"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows))));
}

export function start() {
  byId("dead-letters-open").addEventListener("click", showDeadLetters);
  setInterval(() => document.hidden || refresh(), POLL_MS);
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  return refresh();
}
