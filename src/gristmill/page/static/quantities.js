// Figures of the planner: how each was come by, its value, and the formula it follows from.

import { h, svg } from "./dom.js";

const MEANING = { computed: "computed from a formula", measured: "measured", cited: "cited from a source" };

export function quantitiesSection(section) {
  const rows = section.items.map((item) =>
    h("div", { class: "quantity", "data-id": item.id },
      h("dt", {}, provenance(item.label), item.name),
      h("dd", { class: "value", title: `${item.value} ${item.unit === "1" ? "" : item.unit}`.trim() }, item.shown, item.second ? h("span", { class: "second" }, ` = ${item.second}`) : null),
      h("dd", { class: "formula" }, item.formula)));
  const list = h("dl", { class: "quantities" }, rows);
  return section.folded ? h("details", {}, h("summary", {}, section.title), list) : list;
}

/** A mark for how a figure was come by; shape and word tell, colour only repeats it. */
export function provenance(label) {
  const mark = {
    computed: () => svg("circle", { cx: 6, cy: 6, r: 4, class: "hollow" }),
    measured: () => svg("circle", { cx: 6, cy: 6, r: 4.75 }),
    cited: () => svg("path", { d: "M6 0.750L11.250 6 6 11.250 0.750 6z", class: "hollow" }),
  }[label];
  return h("span", { class: `provenance ${label}`, title: MEANING[label] }, svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, mark()), h("span", { class: "hidden" }, `${label}: `));
}

/** What the marks mean. */
export function provenanceLegend() {
  return h("p", { class: "legend" }, Object.entries(MEANING).map(([label, words]) => h("span", {}, provenance(label), h("span", { "aria-hidden": "true" }, words))));
}
