// The planner's plots, each drawn by the page's own chart.

import { Chart } from "./chart.js";
import { h } from "./dom.js";

/** A section's plots (plan.plot.Plot as JSON). A chart whose plot keeps its form is kept when numbers change, with its
 * open table; `old` are those of the section before. */
export function plotsSection(section, old = []) {
  const known = new Map(old.map((chart) => [JSON.stringify(chart.spec), chart]));
  const charts = section.plots.map((plot) => {
    const spec = toSpec(plot, section.plots.length > 1 ? "half" : "wide");
    const chart = known.get(JSON.stringify(spec)) ?? new Chart(spec);
    chart.setRows(toRows(plot.curves));
    return chart;
  });
  return { content: h("div", { class: "charts" }, charts.map((chart) => chart.node)), plots: charts };
}

function toSpec(plot, size) {
  const unit = (word) => (word && word !== "1" ? ` (${word === "byte" ? "bytes" : word})` : "");
  return {
    id: plot.id,
    title: plot.title,
    unit: `${plot.y_name}${unit(plot.y_unit)} over ${plot.x_name}${unit(plot.x_unit)}`,
    x: plot.x_name,
    xUnit: plot.x_unit === "1" ? "" : plot.x_unit, // along an axis a bare number is a number, not a share
    yUnit: plot.y_unit,
    log: plot.log_y,
    logX: plot.log_x,
    size,
    series: plot.curves.map((curve, i) => ({ key: `y${i}`, label: curve.label === "computed" ? curve.name : `${curve.name} (${curve.label})`, kind: curve.kind })),
  };
}

/** One row for each x of any curve; more where a curve has several values there, as an upright line has. */
function toRows(curves) {
  const rows = new Map();
  curves.forEach((curve, i) => curve.x.forEach((x, at) => {
    if (!rows.has(x)) rows.set(x, []);
    let row = rows.get(x).find((one) => !(`y${i}` in one));
    if (!row) rows.get(x).push(row = { step: x });
    row[`y${i}`] = curve.y[at];
  }));
  return [...rows.values()].flat().sort((a, b) => a.step - b.step);
}
