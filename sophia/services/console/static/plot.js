// A bar for each of the newest batches: commit to searchable, against the promise of 100 ms.

import { clock, count, duration, el, svg } from "./dom.js";

const PROMISE_MS = 100;
const HEIGHT = 64;
const MOST_BARS = 90;
const STEP = 5;
// Room for the label of the promise.
const LABEL = 44;

export class LagPlot {
  constructor(name) {
    this.name = name;
    this.points = [];
    this.svg = svg("svg", { class: "plot", role: "img", height: HEIGHT, width: "100%" });
    this.readout = el("p", { class: "readout" });
    this.element = el("div", { class: "plot-box" }, this.svg, this.readout);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.show(null));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  set(points) {
    this.points = points.slice(-MOST_BARS);
    this.draw();
  }

  push(point) {
    if (this.points.some((known) => known.batch === point.batch)) return;
    this.points = [...this.points, point].slice(-MOST_BARS);
    this.draw(true);
  }

  draw(fresh = false) {
    const width = this.svg.clientWidth;
    if (!width) return;
    this.shown = this.points.slice(-Math.floor((width - LABEL) / STEP));
    const sorted = this.shown.map((point) => point.lag_ms).sort((a, b) => a - b);
    // Logarithmic, so that one slow batch does not flatten all others.
    const top = Math.log(Math.max(PROMISE_MS * 2, sorted.at(-1) ?? 0));
    const y = (ms) => HEIGHT - (Math.log(Math.max(ms, 1)) / top) * (HEIGHT - 2);
    const left = width - this.shown.length * STEP;
    const bars = this.shown.map((point, number) => {
      const height = Math.max(2, HEIGHT - y(point.lag_ms));
      const classes = ["bar-mark"];
      if (point.lag_ms > PROMISE_MS) classes.push("slow");
      if (fresh && number === this.shown.length - 1) classes.push("fresh");
      return svg("rect", { class: classes.join(" "), x: left + number * STEP, y: HEIGHT - height, width: STEP - 1.5, height, rx: 1 });
    });
    this.svg.replaceChildren(
      svg("line", { class: "promise", x1: 0, x2: width, y1: y(PROMISE_MS), y2: y(PROMISE_MS) }),
      svg("text", { class: "promise-label", x: 0, y: y(PROMISE_MS) - 4 }, `${PROMISE_MS} ms`),
      ...bars,
    );
    const middle = sorted.length ? sorted[Math.floor(sorted.length / 2)] : null;
    this.svg.setAttribute("aria-label", sorted.length
      ? `Lag of the last ${sorted.length} batches of ${this.name}: median ${duration(middle)}, highest ${duration(sorted.at(-1))}`
      : `No live change of ${this.name} yet`);
    this.show(null);
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const left = box.width - this.shown.length * STEP;
    const number = Math.floor((event.clientX - box.left - left) / STEP);
    this.show(this.shown[number] ?? null);
  }

  show(point) {
    if (point) {
      this.readout.textContent = `${clock(point.applied_at)} · ${duration(point.lag_ms)} · ${count(point.documents)} row${point.documents === 1 ? "" : "s"}`;
    } else {
      this.readout.textContent = this.points.length ? `last ${this.shown?.length ?? 0} batches, logarithmic` : "no live change yet";
    }
  }
}
