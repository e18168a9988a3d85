// Where a key's vectors came from: the way of the row from its source to the store, and its last changes.

import { api, between, count, duration, el, keyText, showDialog, time } from "./dom.js";

const OPERATIONS = { c: "insert", u: "update", d: "delete" };

// What a snapshot copied has no commit of its own.
const operation = (change) => (change.op === "c" && !change.committed_at ? "snapshot" : OPERATIONS[change.op] ?? change.op);

function step(title, when, delay, facts) {
  return el("li", {},
    el("h4", {}, title, delay === null ? null : el("span", { class: delay < 1000 ? "delay quick" : "delay" }, `+${duration(delay)}`)),
    el("dl", {}, ...[["at", when], ...facts].filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}

const code = (text) => (text === null || text === undefined ? null : el("code", {}, String(text)));

export async function provenance(index, key, chunk = null) {
  const why = await api(`/api/why?index=${encodeURIComponent(index)}&key=${encodeURIComponent(key)}`);
  const hashes = chunk === null ? why.content_hashes : why.content_hashes.slice(chunk, chunk + 1);
  const delay = (from, to) => (from && to ? Math.max(0, between(from, to)) : null);
  const steps = el("ol", { class: "steps" },
    step("Source", why.committed_at ? time(why.committed_at, true) : "before the snapshot", null, [
      ["table", code(why.source_table ?? why.collection)], ["key", code(keyText(why.key))], ["LSN", code(why.lsn)], ["transaction", code(why.txid)]]),
    step("Inbox", time(why.received_at, true), delay(why.committed_at, why.received_at), [
      ["collection", code(why.collection)], ["clock", code(why.clock.join(" · "))], ["missing", why.missing.join(", ")]]),
    step("Index", time(why.indexed_at, true), delay(why.received_at, why.indexed_at), [
      ["state", why.deleted ? "deleted" : why.state ?? "waiting"], ["version", `${why.index} v${why.version}`], ["run", code(why.run)],
      ["content hash", hashes.length ? el("span", {}, ...hashes.slice(0, 4).map((hash) => el("code", { class: "hash", title: hash }, hash)), hashes.length > 4 ? ` and ${count(hashes.length - 4)} more` : "") : null]]),
    step("Model", null, null, [["name", code(why.model)], ["backend", code(why.backend)], ["fingerprint", el("code", { class: "hash", title: why.fingerprint }, why.fingerprint)], ["store", code(`${why.store} ${why.store_name}`)]]));
  const rows = why.history.map((change) => el("tr", {},
    el("td", {}, el("span", { class: `op ${change.op}` }, operation(change))), el("td", {}, code(change.lsn) ?? "–"),
    el("td", {}, code(change.txid) ?? "–"), el("td", {}, time(change.committed_at, true)),
    el("td", {}, change.committed_at && change.received_at ? `+${duration(Math.max(0, between(change.committed_at, change.received_at)))}` : "–")));
  return el("div", { class: "provenance" },
    why.dead_letter ? el("p", { class: "fault" }, `Parked: ${why.dead_letter}`) : null,
    steps,
    el("div", { class: "scroll" }, el("table", {},
      el("caption", {}, "Last changes"),
      el("thead", {}, el("tr", {}, ...["Change", "LSN", "Transaction", "Committed", "Received"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows))));
}

export async function openProvenance(index, key) {
  const title = `${index} · ${keyText(key)}`;
  try {
    showDialog(title, await provenance(index, key));
  } catch (error) {
    showDialog(title, el("p", { class: "fault" }, error.message));
  }
}
