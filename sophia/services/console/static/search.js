// The search form and its results. Typing searches; a change of the index searches again.

import { api, byId, count, duration, el, keyText, time } from "./dom.js";
import { provenance } from "./provenance.js";

const TYPING_MS = 180;
const FOLLOW_MS = 700;
const LOADING_MS = 1_000;
const WORD = /[\p{L}\p{N}_]{2,}/gu;

const values = new Map();
const shown = new Map();
let indexes = [];
let pending = null;
let timer = null;
let question = null;

const current = () => indexes.find((index) => index.name === byId("index").value);

// The text as nodes, the words of the query marked. Text nodes only: a document's markup stays text.
export function highlight(text, query) {
  const words = [...new Set(query.match(WORD) ?? [])].sort((a, b) => b.length - a.length);
  if (!words.length) return [text];
  const pattern = new RegExp(words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "giu");
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(pattern)) {
    nodes.push(text.slice(from, match.index), el("mark", {}, match[0]));
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes;
}

// What a person typed, as JSON text of the type that the field has. Numbers stay text all the way, so that no
// digit of a long one is lost.
function filterJson(field, text) {
  const known = values.get(byId("index").value)?.[field] ?? [];
  const exact = known.find((raw) => raw === text || (raw.startsWith('"') && JSON.parse(raw) === text));
  if (exact !== undefined) return exact;
  const typed = text.startsWith("[") || (known.length > 0 && known.every((raw) => !raw.startsWith('"')));
  if (typed) {
    try {
      JSON.parse(text);
      return text;
    } catch {
      // Not a number after all: it is searched as the text that it is.
    }
  }
  return JSON.stringify(text);
}

function body() {
  const filters = [...byId("filter-fields").querySelectorAll("input")]
    .filter((input) => input.value.trim())
    .map((input) => `${JSON.stringify(input.name)}:${filterJson(input.name, input.value.trim())}`);
  byId("filter-count").textContent = filters.length ? ` (${filters.length})` : "";
  const k = Math.min(100, Math.max(1, Number.parseInt(byId("k").value, 10) || 10));
  const rest = JSON.stringify({ index: byId("index").value, text: byId("query").value, k, hybrid: byId("hybrid").checked });
  return `${rest.slice(0, -1)},"filters":{${filters.join(",")}}}`;
}

function hitNode(hit, index, query) {
  const details = el("details", {}, el("summary", {}, "Provenance"));
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    const place = el("div", {}, "…");
    details.replaceChildren(details.firstElementChild, place);
    try {
      place.replaceChildren(await provenance(index, hit.key, hit.chunk));
    } catch (error) {
      place.replaceChildren(el("p", { class: "fault" }, error.message));
    }
  });
  const metadata = Object.entries(hit.metadata).filter(([, value]) => value !== null && value !== "");
  return el("li", { class: "hit" },
    el("div", { class: "hit-head" },
      el("span", { class: "score" }),
      el("code", { class: "hit-key" }, keyText(hit.key)),
      hit.chunk ? el("span", { class: "pill" }, `chunk ${hit.chunk + 1}`) : null,
      el("span", { class: "when" }, "indexed ", time(hit.indexed_at))),
    el("p", { class: "content" }, ...highlight(hit.content, query)),
    el("ul", { class: "metadata", "aria-label": "Metadata" }, ...metadata.map(([name, value]) =>
      el("li", {}, el("span", {}, name), typeof value === "object" ? JSON.stringify(value) : String(value)))),
    details);
}

// Nodes of hits that did not change stay as they are, with their focus and what is open in them.
function render(answer, query, again) {
  const kept = new Map();
  const nodes = answer.hits.map((hit) => {
    const id = JSON.stringify([answer.index, answer.version, query, hit.key, hit.chunk, hit.indexed_at]);
    const node = shown.get(id) ?? hitNode(hit, answer.index, query);
    if (again && !shown.has(id)) node.classList.add("fresh");
    node.querySelector(".score").textContent = hit.score.toFixed(3);
    kept.set(id, node);
    return node;
  });
  const list = byId("hits");
  if (nodes.length !== list.children.length || nodes.some((node, number) => list.children[number] !== node)) list.replaceChildren(...nodes);
  shown.clear();
  for (const [id, node] of kept) shown.set(id, node);
  byId("search-state").className = "state";
  byId("search-state").textContent = answer.hits.length
    ? `${count(answer.hits.length)} result${answer.hits.length === 1 ? "" : "s"} in ${duration(answer.took_ms)} · ${answer.index} v${answer.version} · ${answer.model}`
    : "Nothing found; take a filter away, or another index.";
}

function clear(text = "", fault = false) {
  shown.clear();
  byId("hits").replaceChildren();
  byId("search-state").className = fault ? "state fault" : "state";
  byId("search-state").textContent = text;
}

async function run(again = false) {
  clearTimeout(timer);
  pending?.abort();
  const query = byId("query").value.trim();
  remember(query);
  question = body();
  if (!query) return clear();
  const required = current()?.required_filter;
  if (required && !question.includes(`${JSON.stringify(required)}:`)) return clear(`This index is searched with a filter on ${required}.`);
  const own = pending = new AbortController();
  try {
    const answer = await api("/api/search", { method: "POST", body: question, signal: own.signal, headers: { "Content-Type": "application/json" } });
    if (own === pending) render(answer, query, again);
  } catch (error) {
    if (error.name === "AbortError" || own !== pending) return;
    if (error.status === 503) {
      clear(error.message);
      timer = setTimeout(run, LOADING_MS);
    } else {
      clear(error.message, true);
    }
  }
}

function remember(query) {
  const address = new URLSearchParams();
  if (query) address.set("q", query);
  if (byId("index").selectedIndex > 0) address.set("index", byId("index").value);
  if (byId("hybrid").checked) address.set("hybrid", "1");
  if (byId("k").value !== "10") address.set("k", byId("k").value);
  const text = address.toString();
  history.replaceState(null, "", text ? `/?${text}` : "/");
}

async function showFilters() {
  const index = current();
  const box = byId("filters");
  box.hidden = !index?.metadata?.length;
  if (box.hidden) return;
  box.open = box.open || Boolean(index.required_filter);
  byId("filter-fields").replaceChildren(...index.metadata.map((field) => el("label", {},
    field === index.required_filter ? `${field} (required)` : field,
    el("input", { name: field, list: `values-${field}`, placeholder: "any", spellcheck: "false", oninput: later }),
    el("datalist", { id: `values-${field}` }))));
  try {
    if (!values.has(index.name)) values.set(index.name, (await api(`/api/fields?index=${encodeURIComponent(index.name)}`)).fields);
  } catch {
    return;
  }
  if (current() !== index) return;
  for (const [field, known] of Object.entries(values.get(index.name))) {
    byId(`values-${field}`)?.replaceChildren(...known.map((raw) => el("option", { value: raw.startsWith('"') ? JSON.parse(raw) : raw })));
  }
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(run, TYPING_MS);
}

let followed = 0;
export function noteBatch(batch) {
  if (!byId("follow").checked || batch.index !== byId("index").value || !byId("query").value.trim()) return;
  if (followed) return;
  followed = setTimeout(() => {
    followed = 0;
    run(true);
  }, FOLLOW_MS);
}

export async function start() {
  const address = new URLSearchParams(location.search);
  byId("query").value = address.get("q") ?? "";
  byId("k").value = address.get("k") ?? "10";
  byId("hybrid").checked = address.has("hybrid");
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("query").addEventListener("input", later);
  byId("k").addEventListener("input", later);
  byId("hybrid").addEventListener("change", () => run());
  byId("index").addEventListener("change", () => {
    showFilters();
    run();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select, textarea, dialog")) {
      event.preventDefault();
      byId("query").focus();
    }
  });
  await load(address.get("index"));
}

// The indexes may not be there yet: the first indexer makes them.
async function load(wanted) {
  try {
    indexes = (await api("/api/indexes")).indexes;
  } catch {
    indexes = [];
  }
  byId("index").replaceChildren(...indexes.map((index) =>
    el("option", { value: index.name, disabled: !index.serving, selected: index.name === wanted }, index.serving ? index.name : `${index.name} (not built)`)));
  if (!indexes.some((index) => index.serving)) return setTimeout(load, 2_000, wanted);
  showFilters();
  if (byId("query").value.trim()) run();
}
