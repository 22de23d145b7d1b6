// A line chart in SVG, with its numbers as a table beside it. Redrawn as points arrive; at most a few times a second.

import { h, svg, throttle } from "./dom.js";
import { compact, format, number, prefixed, quantity } from "./format.js";
import { extent, logScale, logTicks, niceTicks, scale } from "./scales.js";

const HEIGHTS = { wide: 220, half: 200, third: 140 };
const MARGIN = { left: 56, right: 22, top: 10, bottom: 30 };
const REDRAW_MS = 250;
const DOTS_BELOW = 40;
const TABLE_ROWS = 200;
const RINGS = 20;
const COLOURS = 6;
const BAR_ROOM = 24; // pixels on both sides of the first and the last bars

/**
 * `spec`: { title, unit, x, series: [{ key, label }], size, log, mark: { key, label }, format } as page/sections.py says.
 * `rows` are objects with `step` and a value for each key, in the order of the steps; a row may lack a key.
 * The planner's plots (plots.js) also give `xUnit` and `yUnit` (SI, in place of `format`), `logX`, and a `kind` for each
 * series: line, points or bars; their `step` is any x.
 */
export class Chart {
  constructor(spec) {
    this.spec = spec;
    this.height = HEIGHTS[spec.size] ?? HEIGHTS.half;
    this.rows = [];
    this.cursor = null;
    this.readout = h("p", { class: "readout" });
    this.plot = h("div", { class: "plot" });
    this.table = h("tbody");
    this.details = h(
      "details",
      { class: "twin", on: { toggle: () => this.#fillTable() } },
      h("summary", {}, "View as table"),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "num" }, spec.x), spec.series.map((s) => h("th", { scope: "col", class: "num" }, s.label)))),
          this.table,
        ),
      ),
    );
    this.marked = spec.mark ? h("span", { class: "key ring", hidden: true }, spec.mark.label) : null;
    const keys = spec.series.length > 1 ? spec.series.map((s, i) => h("span", { class: `key ${s.kind ?? "line"} ${colour(i)}` }, s.label)) : [];
    const legend = h("p", { class: "legend" }, keys, this.marked);
    const unit = spec.unit ? h("span", { class: "unit" }, spec.unit) : null;
    this.node = h("figure", { class: `chart ${spec.size ?? "half"}` }, h("figcaption", {}, h("b", {}, spec.title), " ", unit), legend, this.plot, this.readout, this.details);
    this.redraw = throttle(() => this.#draw(), REDRAW_MS);
    new ResizeObserver(() => this.redraw()).observe(this.plot);
  }

  setRows(rows) {
    this.rows = rows;
    this.#draw();
  }

  /** Adds one row; a step that is there already (computed again after a resume) is replaced. */
  push(row) {
    if (!this.spec.series.some((s) => Number.isFinite(row[s.key]))) return;
    this.rows = this.rows.filter((old) => old.step < row.step);
    this.rows.push(row);
    this.redraw();
  }

  #points(key) {
    const drawn = (value, log) => Number.isFinite(value) && (!log || value > 0);
    const shown = this.rows.filter((row) => drawn(row[key], this.spec.log) && drawn(row.step, this.spec.logX));
    return shown.map((row) => [row.step, row[key]]);
  }

  #draw() {
    const width = Math.max(240, this.plot.clientWidth || 480);
    const lines = this.spec.series.map((s) => this.#points(s.key));
    const all = lines.flat();
    if (!all.length) {
      this.plot.replaceChildren(h("p", { class: "empty" }, "No measurement yet."));
      return;
    }
    const bars = this.spec.series.filter((s) => s.kind === "bars").length;
    const xs = extent(all.map((p) => p[0]));
    const values = extent([...all.map((p) => p[1]), ...(bars && !this.spec.log ? [0] : [])]);
    const ticks = this.spec.log ? logTicks(...values) : niceTicks(...values, this.height < 180 ? 3 : 4);
    const bottom = this.height - MARGIN.bottom;
    const room = bars ? BAR_ROOM : 0;
    this.x = (this.spec.logX ? logScale : scale)(xs, [MARGIN.left + room, width - MARGIN.right - room]);
    const y = (this.spec.log ? logScale : scale)([ticks[0], ticks.at(-1)], [bottom, MARGIN.top]);
    const picture = svg("svg", {
      viewBox: `0 0 ${width} ${this.height}`, role: "img", tabindex: "0", "aria-label": this.#summary(lines),
      on: {
        pointermove: (event) => this.#point(event.clientX - this.plot.getBoundingClientRect().left),
        pointerleave: () => this.#show(null),
        keydown: (event) => this.#step(event),
        blur: () => this.#show(null),
      },
    });
    for (const tick of ticks) {
      picture.append(
        svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick), class: "grid" }),
        svg("text", { x: MARGIN.left - 8, y: y(tick) + 4, class: "tick end" }, this.#short(tick)),
      );
    }
    for (const tick of this.#xTicks(xs, width)) {
      picture.append(svg("text", { x: this.x(tick), y: this.height - 10, class: "tick middle" }, this.#isPlot() ? prefixed(tick) : compact(tick)));
    }
    let bar = 0;
    lines.forEach((points, i) => {
      const { kind } = this.spec.series[i];
      if (kind === "bars") picture.append(...drawBars(points, colour(i), this.x, y, bottom, bar++, bars));
      else if (kind === "points") picture.append(...points.map(([px, py]) => svg("circle", { cx: this.x(px), cy: y(py), r: 4.5, class: `point ${colour(i)}` })));
      else picture.append(...drawLine(points, colour(i), this.x, y));
    });
    picture.append(...this.#marks(lines, y));
    this.rule = svg("line", { y1: MARGIN.top, y2: bottom, class: "cursor", visibility: "hidden" });
    picture.append(this.rule);
    const focused = this.plot.contains(document.activeElement);
    this.plot.replaceChildren(picture);
    if (focused) picture.focus();
    this.#show(this.cursor);
    if (this.details.open) this.#fillTable();
  }

  /** Rings around what stands out, strokes along the axis where rings would hide the line, and the word for them in the
   * legend once there is one. */
  #marks(lines, y) {
    const { mark } = this.spec;
    if (!mark) return [];
    const steps = new Set(this.rows.filter((row) => row[mark.key] > 0).map((row) => row.step));
    const rings = lines[0].filter(([step]) => steps.has(step));
    this.marked.hidden = !rings.length;
    this.marked.textContent = `${mark.label} (${rings.length})`;
    if (rings.length > RINGS) {
      const foot = this.height - MARGIN.bottom;
      return rings.map(([step]) => svg("line", { x1: this.x(step), x2: this.x(step), y1: foot - 8, y2: foot, class: "mark-ring" }));
    }
    return rings.map(([step, value]) => svg("circle", { cx: this.x(step), cy: y(value), r: 5, class: "mark-ring" }));
  }

  #isPlot() {
    return this.spec.xUnit !== undefined;
  }

  #xTicks(xs, width) {
    const ticks = this.spec.logX && xs[0] < xs[1] ? logTicks(...xs) : niceTicks(...xs, Math.min(6, Math.floor(width / 90)));
    return ticks.filter((tick) => tick >= xs[0] && tick <= xs[1]);
  }

  #sayX(value) {
    return this.#isPlot() ? quantity(value, this.spec.xUnit) : format(value, "count");
  }

  #say(value) {
    if (this.#isPlot()) return quantity(value, this.spec.yUnit);
    return this.spec.format ? format(value, this.spec.format) : number(value);
  }

  /** For the axis, where room is short. */
  #short(value) {
    if (this.#isPlot()) return this.spec.yUnit === "1" ? `${number(100 * value)} %` : prefixed(value);
    if (this.spec.format === "percent") return `${number(100 * value)} %`;
    return this.spec.format ? this.#say(value) : compact(value);
  }

  #summary(lines) {
    const parts = this.spec.series.map((s, i) => {
      const points = lines[i];
      if (!points.length) return `${s.label}: none yet`;
      return `${s.label}: ${this.#say(points[0][1])} at ${this.spec.x} ${this.#sayX(points[0][0])}, ${this.#say(points.at(-1)[1])} at ${this.spec.x} ${this.#sayX(points.at(-1)[0])}`;
    });
    return `${this.spec.title}. ${parts.join("; ")}.`;
  }

  #point(x) {
    let best = null;
    for (const row of this.rows) {
      if (!this.spec.series.some((s) => Number.isFinite(row[s.key]))) continue;
      if (best === null || Math.abs(this.x(row.step) - x) < Math.abs(this.x(best.step) - x)) best = row;
    }
    this.#show(best);
  }

  #step(event) {
    const rows = this.rows.filter((row) => this.spec.series.some((s) => Number.isFinite(row[s.key])));
    const at = this.cursor ? rows.findIndex((row) => row.step === this.cursor.step) : rows.length;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#show(rows[Math.min(Math.max(to, 0), rows.length - 1)]);
  }

  /** The vertical rule and, in words, what it points at; without a cursor the last values. */
  #show(row) {
    this.cursor = row;
    if (!this.rule) return;
    this.rule.setAttribute("visibility", row ? "visible" : "hidden");
    if (row) {
      this.rule.setAttribute("x1", this.x(row.step));
      this.rule.setAttribute("x2", this.x(row.step));
    }
    const last = row ?? this.#latest();
    const values = this.spec.series.filter((s) => Number.isFinite(last[s.key])).map((s) => `${s.label} ${this.#say(last[s.key])}`);
    this.readout.textContent = `${this.spec.x} ${this.#sayX(last.step)}: ${values.join(", ")}`;
  }

  /** The last values, at the newest step that has any: the rows after it tell of other charts. A plot of the planner
   * rests at its single point, which is what was asked. */
  #latest() {
    if (this.#isPlot()) {
      const asked = this.spec.series.find((s) => s.kind === "points" && this.#points(s.key).length === 1);
      return (asked && this.rows.find((row) => Number.isFinite(row[asked.key]))) ?? this.rows.at(-1);
    }
    const latest = { step: 0 };
    for (const { key } of this.spec.series) {
      const [step, value] = this.#points(key).at(-1) ?? [0];
      latest.step = Math.max(latest.step, step);
      latest[key] = value;
    }
    return latest;
  }

  #fillTable() {
    if (!this.details.open) return;
    const rows = this.rows.filter((row) => this.spec.series.some((s) => Number.isFinite(row[s.key])));
    const every = Math.ceil(rows.length / TABLE_ROWS);
    const shown = rows.filter((_, i) => i % every === 0 || i === rows.length - 1);
    const cells = (row) => this.spec.series.map((s) => h("td", { class: "num" }, Number.isFinite(row[s.key]) ? this.#say(row[s.key]) : ""));
    this.table.replaceChildren(...shown.map((row) => h("tr", {}, h("th", { scope: "row", class: "num" }, this.#sayX(row.step)), cells(row))));
  }
}

/** The seventh and later lines have the first ones' colours, and are dashed. */
function colour(index) {
  return `series-${index % COLOURS}${index < COLOURS ? "" : " again"}`;
}

function drawBars(points, paint, x, y, bottom, place, count) {
  const gaps = points.slice(1).map(([px], i) => x(px) - x(points[i][0]));
  const width = Math.max(1, (0.8 * Math.min(2 * BAR_ROOM, ...gaps)) / count);
  return points.map(([px, py]) => {
    const top = y(py);
    return svg("rect", { x: x(px) + width * (place - count / 2), y: top, width, height: Math.max(0, bottom - top), class: `column ${paint}` });
  });
}

function drawLine(points, paint, x, y) {
  const d = points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
  const drawn = [svg("path", { d, class: `line ${paint}` })];
  if (points.length < DOTS_BELOW) {
    drawn.push(...points.map(([px, py]) => svg("circle", { cx: x(px), cy: y(py), r: 2.5, class: `dot ${paint}` })));
  }
  return drawn;
}
