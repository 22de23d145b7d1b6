// Histograms of documents kept and removed over a value, with dashed lines at the thresholds of rules.

import { h, svg } from "./dom.js";
import { compact, format } from "./format.js";

const WIDTH = 320;
const HEIGHT = 124;
const TOP = 14;
const FLOOR = 104;
const WIDEST = 26; // of one column
const APART = 44; // labels of the axis, at the least

// Candidates for an axis' labels, the roundest first.
const POWERS = Array.from({ length: 13 }, (_, k) => 10 ** k);
const TENTHS = [0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9];
const HUNDREDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 25, 35, 45, 55, 65, 75, 85, 95].map((i) => i / 100);
const ROUND = [0, ...POWERS, ...TENTHS, ...[5, 2, 3, 4, 6, 7, 8, 9].flatMap((f) => POWERS.map((power) => f * power)), ...HUNDREDTHS];

export function histograms(section) {
  const legend = h("p", { class: "legend" }, h("span", { class: "key series-0" }, "kept"), h("span", { class: "key series-1" }, "removed"));
  const drawn = section.items.map((item) => h("figure", {}, h("figcaption", {}, h("b", {}, item.title), " ", h("span", { class: "unit" }, item.note)), draw(item)));
  return h("div", {}, legend, h("div", { class: "histograms" }, drawn));
}

function draw(item) {
  const step = Math.min(WIDTH / item.bins.length, WIDEST);
  const all = item.kept.map((count, i) => count + item.removed[i]);
  const ceiling = top(item.bins, all);
  const picture = svg("svg", { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${item.title}: ${item.note || "no threshold"}` });
  all.forEach((count, i) => {
    if (!count) return;
    const unit = ((FLOOR - TOP) * Math.min(1, ceiling / count)) / ceiling;
    const part = (from, size, name) => svg("rect", { class: name, x: i * step, y: FLOOR - (from + size) * unit, width: Math.max(step - 1, 0.5), height: size * unit });
    const words = `${spanWords(item.bins[i])}: ${format(count, "count")} documents, ${format(item.removed[i], "count")} removed`;
    picture.append(svg("g", {}, svg("title", {}, words), part(0, item.kept[i], "kept"), part(item.kept[i], item.removed[i], "removed")));
    if (count > ceiling) picture.append(svg("text", { x: i * step, y: TOP - 4, class: "tick" }, `↑ ${format(count, "count")}`));
  });
  picture.append(svg("line", { x1: 0, x2: WIDTH, y1: FLOOR, y2: FLOOR, class: "grid" }));
  for (const [x, value] of labels(item.bins, step)) {
    const anchor = x < APART / 3 ? "" : x > WIDTH - APART / 3 ? " end" : " middle";
    picture.append(svg("text", { x, y: FLOOR + 15, class: `tick${anchor}` }, compact(value)));
  }
  for (const [value, words] of item.cuts) {
    const x = step * place(item.bins, value);
    picture.append(svg("line", { x1: x, x2: x, y1: TOP, y2: FLOOR, class: "cut" }, svg("title", {}, words)));
  }
  return picture;
}

/** The count at the top of the picture. Zeros alone can dwarf every other column; then theirs is cut off. */
function top(bins, counts) {
  const others = Math.max(0, ...counts.filter((_, i) => bins[i][0] !== bins[i][1]));
  const largest = Math.max(1, ...counts);
  return others ? Math.min(largest, 2 * others) : largest;
}

/** Where a value stands, in bins from the left edge. */
function place(bins, value) {
  const i = bins.findIndex(([, high]) => value <= high);
  if (i < 0) return bins.length;
  const [low, high] = bins[i];
  return high > low ? i + Math.max(0, (value - low) / (high - low)) : i;
}

function labels(bins, step) {
  const chosen = [];
  for (const value of ROUND) {
    const x = step * place(bins, value);
    if (value >= bins[0][0] && value <= bins.at(-1)[1] && chosen.every(([other]) => Math.abs(x - other) >= APART)) chosen.push([x, value]);
  }
  return chosen;
}

function spanWords([low, high]) {
  return low === high ? compact(low) : `${compact(low)} to ${compact(high)}`;
}
