// Is a run well? A sentence, and under it the checks it comes from. State is told by shape and word; colour repeats it.

import { h, svg } from "./dom.js";
import { format } from "./format.js";

const WORDS = { good: "well", watch: "worth a look", bad: "in trouble" };
const SHAPES = {
  good: () => svg("path", { d: "M2.500 8.500l3.500 3.500 7.500-8", class: "stroke" }),
  watch: () => svg("path", { d: "M8 1.500l7 13h-14z", class: "fill" }),
  bad: () => svg("path", { d: "M3 3l10 10M13 3l-10 10", class: "stroke" }),
};

export function judgement(section) {
  const items = section.items.map((item) =>
    h("div", { class: `check ${item.state}` },
      h("dt", {}, mark(item.state), item.label),
      h("dd", {}, h("b", {}, format(item.value, item.unit)), " ", h("span", {}, item.words))));
  return h("div", { class: "judgement" },
    h("p", { class: `verdict ${section.state}` }, mark(section.state), section.sentence),
    h("dl", { class: "checks" }, items));
}

function mark(state) {
  const shape = svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, SHAPES[state]());
  return h("span", { class: "shape" }, shape, h("span", { class: "hidden" }, `${WORDS[state]}: `));
}
