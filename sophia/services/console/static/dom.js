// Building elements, asking the API, and putting values into words.
// Text from documents only ever becomes a text node: nothing here parses HTML.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export class ApiError extends Error {
  constructor(message, status, fix) {
    super(fix ? `${message}; ${fix}` : message);
    this.status = status;
  }
}

// Integers that a double cannot hold keep their digits as text.
function parse(text) {
  return JSON.parse(text, (name, value, context) =>
    typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source
      ? context.source
      : value);
}

export async function api(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The console's server does not answer", 0);
  }
  const text = await response.text();
  let body;
  try {
    body = parse(text);
  } catch {
    throw new ApiError(text.slice(0, 200) || `The server answered ${response.status}`, response.status);
  }
  if (!response.ok) throw new ApiError(body.error ?? `The server answered ${response.status}`, response.status, body.fix);
  return body;
}

const whole = new Intl.NumberFormat("en");
export const count = (value) => whole.format(value);

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  const size = Math.abs(ms);
  if (size < 1) return `${ms.toFixed(2)} ms`;
  if (size < 100) return `${ms.toFixed(1)} ms`;
  if (size < 1000) return `${Math.round(ms)} ms`;
  if (size < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  if (size < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}

const pad = (value, length = 2) => String(value).padStart(length, "0");

export function clock(iso, fraction = false) {
  const at = new Date(iso);
  const text = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  return fraction ? `${text}.${pad(at.getMilliseconds(), 3)}` : text;
}

export function moment(iso, fraction = false) {
  if (!iso) return "–";
  const at = new Date(iso);
  const today = at.toDateString() === new Date().toDateString();
  const date = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} `;
  return (today ? "" : date) + clock(iso, fraction);
}

// Milliseconds between two ISO times, with the microseconds that Date would drop.
export function between(from, to) {
  const micro = (iso) => Number((/\.\d{3}(\d{1,3})/.exec(iso)?.[1] ?? "0").padEnd(3, "0")) / 1000;
  return new Date(to) - new Date(from) + micro(to) - micro(from);
}

export const time = (iso, fraction = false) =>
  iso ? el("time", { datetime: iso, title: iso }, moment(iso, fraction)) : "–";

// A key is canonical JSON, an array of its parts. One part is shown without the brackets.
export function keyText(key) {
  if (!key.startsWith("[") || !key.endsWith("]")) return key;
  const inner = key.slice(1, -1);
  if (inner.startsWith('"')) {
    try {
      const parts = JSON.parse(key);
      return parts.length === 1 ? parts[0] : inner;
    } catch {
      return inner;
    }
  }
  return inner;
}

export function showDialog(title, ...content) {
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...content);
  if (!byId("dialog").open) byId("dialog").showModal();
}
