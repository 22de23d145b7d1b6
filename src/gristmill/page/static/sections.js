// A panel's sections. The server says what there is; here it becomes elements. Each section keeps its element as long
// as its content stays the same, so that an open table, a selection or a conversation outlives an update.

import { Chart } from "./chart.js";
import { chatSection } from "./chat.js";
import { h, svg } from "./dom.js";
import { format, formatRange } from "./format.js";
import { histograms } from "./histogram.js";
import { judgement } from "./judgement.js";
import { playSection } from "./play.js";
import { plotsSection } from "./plots.js";
import { quantitiesSection } from "./quantities.js";

const BUILDERS = {
  figures, table, intervals, documents, histograms, judgement, pairs, charts, image, empty, lines,
  play: playSection,
  chat: chatSection,
  plots: (section) => plotsSection(section),
  quantities: quantitiesSection,
};

// These take the panel's whole width; the others stand side by side where there is room.
const WIDE = new Set(["documents", "histograms", "judgement", "pairs", "charts", "image", "lines", "play", "chat", "plots"]);

const TALL_ROWS = 16; // a longer table scrolls in a frame of its own

/** The sections shown in one panel element. */
export class Sections {
  constructor(panel, context) {
    this.panel = panel;
    this.context = context;
    this.shown = new Map(); // id -> { json, section, node, charts }
  }

  render(sections) {
    const next = new Map();
    for (const section of sections) {
      const json = JSON.stringify(section);
      const old = this.shown.get(section.id);
      if (old && old.json === json) {
        next.set(section.id, old);
      } else if (old && old.charts && section.kind === "charts" && old.section.note === section.note) {
        next.set(section.id, { ...old, json, section, charts: growCharts(old, section) });
      } else if (old && old.plots && section.kind === "plots") {
        const { content, plots } = plotsSection(section, old.plots);
        old.node.querySelector(".charts").replaceChildren(...content.children);
        next.set(section.id, { ...old, json, section, plots });
      } else {
        next.set(section.id, { json, section, ...this.#build(section) });
      }
    }
    this.shown = next;
    const nodes = [...next.values()].map((entry) => entry.node);
    const present = [...this.panel.children];
    // Only what differs is moved: an element that is taken out and put back loses focus and scroll position.
    if (nodes.length !== present.length || nodes.some((node, i) => node !== present[i])) this.panel.replaceChildren(...nodes);
  }

  /** A metric event of `stage`: its charts grow by a point. */
  push(stage, row) {
    for (const entry of this.shown.values()) {
      if (entry.charts && entry.section.stage === stage) entry.charts.forEach((chart) => chart.push(row));
    }
  }

  #build(section) {
    const body = BUILDERS[section.kind](section, this.context);
    const charts = body.charts ?? null;
    const content = body.content ?? body;
    const node = h(
      "section",
      { class: `section kind-${section.kind}${WIDE.has(section.kind) || section.wide ? " wide" : ""}${section.folded ? " folded" : ""}`, "data-id": section.id },
      section.folded ? null : h("h3", {}, section.title),
      content,
      section.note ? h("p", { class: "note" }, section.note) : null,
    );
    if (charts) charts.forEach((chart) => chart.setRows(section.rows));
    return { node, charts, plots: body.plots ?? null };
  }
}

/** Charts whose quantities stay keep their elements, with an open table or a cursor in them; new ones join. */
function growCharts(old, section) {
  const kept = new Map(old.charts.map((chart) => [chart.spec.title, chart]));
  const specs = section.charts.map((spec) => ({ x: section.x, ...spec }));
  const next = specs.map((spec) => {
    const chart = kept.get(spec.title);
    return chart && JSON.stringify(chart.spec) === JSON.stringify(spec) ? chart : new Chart(spec);
  });
  if (next.length !== old.charts.length || next.some((chart, i) => chart !== old.charts[i])) {
    old.node.querySelector(".charts").replaceChildren(...next.map((chart) => chart.node));
  }
  next.forEach((chart) => chart.setRows(section.rows));
  return next;
}

function figures(section) {
  const items = section.items.map((item) => h("div", { class: "item" }, h("dt", {}, item.label), h("dd", exact(item.value, item.unit), format(item.value, item.unit))));
  return h("dl", { class: "figure-list" }, items);
}

function table(section) {
  const columns = section.columns;
  const largest = columns.map((column, i) => (column.bar ? Math.max(...section.rows.map((row) => row[i] ?? 0), 0) : 0));
  const head = h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: classes(column) }, column.label))));
  const rows = section.rows.map((row) => h("tr", {}, row.map((value, i) => cell(value, columns[i], i, largest[i]))));
  const body = h("table", {}, head, h("tbody", {}, rows));
  if (rows.length <= TALL_ROWS) return h("div", { class: "scroll" }, body);
  return h("div", {}, h("div", { class: "scroll tall", tabindex: "0" }, body), h("p", { class: "note" }, `${rows.length} rows; the table scrolls.`));
}

function classes(column) {
  const numeric = column.unit && column.unit !== "text" && column.unit !== "code";
  return [numeric ? "num" : "", column.bar ? "with-bar" : ""].join(" ").trim() || null;
}

function cell(value, column, index, largest) {
  const attributes = { class: classes(column), ...exact(value, column.unit) };
  const text = column.unit === "code" ? h("code", {}, String(value ?? "–")) : format(value, column.unit);
  if (index === 0) return h("th", { scope: "row", ...attributes }, text);
  if (!column.bar) return h("td", attributes, text);
  const length = largest ? 100 * ((value ?? 0) / largest) : 0;
  const bar = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { width: length, height: 6 }));
  return h("td", attributes, h("span", { class: "measure" }, text, bar));
}

function exact(value, unit) {
  return unit === "bytes" && typeof value === "number" ? { title: `${value.toLocaleString("en")} bytes` } : {};
}

/** Values with confidence intervals: a dot with whiskers on a common scale, and the numbers beside it. */
function intervals(section) {
  const ends = section.rows.flatMap((row) => [row.low ?? row.value, row.high ?? row.value, row.value]);
  const [low, high] = section.range ?? [Math.min(...ends, 0), Math.max(...ends, 0)];
  const x = (value) => 4 + (192 * (value - low)) / (high - low || 1);
  const rows = section.rows.map((row) => {
    const whiskers = row.low === null || row.low === undefined ? [] : [svg("line", { x1: x(row.low), x2: x(row.high), y1: 8, y2: 8 })];
    const zero = low < 0 && high > 0 ? [svg("line", { x1: x(0), x2: x(0), y1: 0, y2: 16, class: "zero" })] : [];
    const picture = svg("svg", { class: "interval", viewBox: "0 0 200 16", "aria-hidden": "true" }, zero, whiskers, svg("circle", { cx: x(row.value), cy: 8, r: 4 }));
    const range = whiskers.length ? formatRange(row.low, row.high, section.unit) : "–";
    return h("tr", {}, h("th", { scope: "row" }, row.label), h("td", {}, picture), h("td", { class: "num" }, format(row.value, section.unit)), h("td", { class: "num" }, range), h("td", { class: "num" }, format(row.n, "count")));
  });
  const head = [["", null], ["", null], [section.value_label, "num"], [section.interval_label, "num"], [section.n_label, "num"]];
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head.map(([label, c]) => h("th", { scope: "col", class: c }, label)))), h("tbody", {}, rows)));
}

function documents(section) {
  const groups = new Map();
  for (const item of section.items) groups.set(item.group, [...(groups.get(item.group) ?? []), item]);
  const nodes = [...groups].map(([group, items]) => {
    const unfolding = items.map(unfold);
    if (group === undefined) return unfolding;
    return h("details", { class: "group" }, h("summary", {}, h("b", {}, group), h("span", { class: "opening" }, items[0].group_note)), unfolding);
  });
  return h("div", { class: "documents" }, nodes);
}

/** One text: its heading and how it begins, and, unfolded, where it comes from and all of it that was sent. */
function unfold(item) {
  const cut = item.characters > item.text.length;
  const shown = cut ? `The first ${format(item.text.length, "count")} of ${format(item.characters, "count")} characters. ` : "";
  const opening = item.text.slice(0, 200).replace(/\s+/g, " ");
  return h("details", {},
    h("summary", {}, h("b", {}, item.label), h("span", { class: "opening" }, opening)),
    h("p", { class: "meta" }, item.meta), h("pre", { class: "text", tabindex: "0" }, item.text), shown ? h("p", { class: "note" }, shown) : null);
}

/** A prompt with texts that stand side by side: chosen and rejected, or one reply of each model. */
function pairs(section) {
  const items = section.items.map((item) =>
    h("article", { class: "pair" }, h("p", { class: "prompt" }, item.prompt),
      h("dl", {}, item.texts.map((text) => h("div", { class: text.mark ? `reply ${text.mark}` : "reply" }, h("dt", {}, text.label), h("dd", {}, text.text || "(nothing)"))))));
  return h("div", { class: "pairs" }, items);
}

function charts(section) {
  const drawn = section.charts.map((spec) => new Chart({ x: section.x, ...spec }));
  return { content: h("div", { class: "charts" }, drawn.map((chart) => chart.node)), charts: drawn };
}

function image(section) {
  return h("a", { href: section.src, class: "picture" }, h("img", { src: section.src, alt: section.alt }));
}

function lines(section) {
  return h("ul", { class: section.sentences ? "said-lines" : "lines" }, section.items.map((item) => h("li", {}, item)));
}

function empty(section) {
  return h("p", { class: "empty" }, section.message, section.command ? [" ", h("code", {}, section.command)] : null);
}
