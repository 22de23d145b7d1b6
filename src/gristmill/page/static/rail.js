// The rail: one button a stage, and under it the stage's panel.

import { h, svg } from "./dom.js";
import { duration, format } from "./format.js";

const WORDS = {
  waiting: "waiting",
  running: "running",
  done: "done",
  fresh: "done earlier, still fresh",
  partial: "partly done",
  failed: "failed",
};

// State is told by shape and word, colour only repeats it.
const MARKS = {
  waiting: () => [],
  running: () => [svg("circle", { cx: 12, cy: 12, r: 5, class: "pulse" })],
  done: () => [svg("path", { d: "M7 12.500l3.500 3.500 6.500-7.500", class: "stroke" })],
  fresh: () => [svg("path", { d: "M7 12.500l3.500 3.500 6.500-7.500", class: "stroke" })],
  partial: () => [svg("path", { d: "M12 3a9 9 0 0 1 0 18z", class: "fill" })],
  failed: () => [svg("path", { d: "M8 8l8 8M16 8l-8 8", class: "stroke" })],
};

/** Builds the list once; `onToggle(key, open)` is called when a stage is opened or closed. `running` tells whether the
 * run is: only then does a stage wait for its turn. */
export class Rail {
  constructor(list, blocks, running, onToggle) {
    this.rows = new Map();
    blocks.forEach((block, index) => this.rows.set(block.key, new Row(block, index, running, onToggle)));
    list.replaceChildren(...[...this.rows.values()].map((row) => row.item));
    list.addEventListener("keydown", (event) => this.#moveFocus(event));
  }

  update(blocks, running) {
    for (const block of blocks) this.rows.get(block.key)?.update(block, running);
  }

  tick(now) {
    for (const row of this.rows.values()) row.tick(now);
  }

  // Arrow keys, Home and End move along the stages, as in a menu; Tab goes through everything.
  #moveFocus(event) {
    const buttons = [...this.rows.values()].map((row) => row.button);
    const at = buttons.indexOf(event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
  }
}

class Row {
  constructor(block, index, running, onToggle) {
    this.key = block.key;
    this.block = block;
    this.mark = h("span", { class: "mark", "aria-hidden": "true" });
    this.figures = h("span", { class: "figures" });
    this.state = h("span", { class: "state" });
    this.meter = h("span", { class: "meter" });
    this.bar = h("span", { class: "bar" });
    this.left = h("span", { class: "left" });
    this.track = h("span", { class: "track", hidden: true }, this.meter, this.left);
    this.meter.append(this.bar);
    this.problem = h("span", { class: "problem", hidden: true });
    this.button = h(
      "button",
      { type: "button", id: `stage-${block.key}`, class: "stage", "aria-expanded": "false", "aria-controls": `panel-${block.key}` },
      this.mark,
      h(
        "span",
        { class: "names" },
        h("span", { class: "title" }, h("span", { class: "number" }, String(index + 1).padStart(2, "0")), " ", block.title),
        h("span", { class: "about" }, block.about),
      ),
      this.figures,
      this.state,
      this.track,
      this.problem,
    );
    this.panel = h("div", { id: `panel-${block.key}`, class: "panel", role: "region", "aria-labelledby": this.button.id, hidden: true });
    this.item = h("li", { class: "row" }, h("h2", {}, this.button), this.panel);
    this.button.addEventListener("click", () => onToggle(this.key, this.panel.hidden));
    this.update(block, running);
  }

  get open() {
    return !this.panel.hidden;
  }

  set open(open) {
    this.panel.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
  }

  update(block, running) {
    this.block = block;
    if (this.item.dataset.state !== block.state) {
      this.item.dataset.state = block.state;
      const ring = svg("circle", { cx: 12, cy: 12, r: 9, class: "ring" });
      this.mark.replaceChildren(svg("svg", { viewBox: "0 0 24 24" }, ring, ...MARKS[block.state]()));
    }
    this.figures.replaceChildren(
      ...block.figures.map((figure) => h("span", { class: "figure" }, h("b", {}, format(figure.value, figure.unit)), " ", figure.label)),
    );
    const part = block.parts.find((one) => one.state === "running");
    const several = block.parts.length > 1;
    const word = block.state === "waiting" && !running ? "not made" : WORDS[block.state];
    this.state.textContent = word + (part && several ? `: ${part.name}` : "");
    const progress = part?.progress;
    this.track.hidden = !progress;
    if (progress) {
      this.meter.hidden = progress.fraction === null;
      this.bar.style.width = `${100 * (progress.fraction ?? 0)}%`;
      this.left.textContent = progressText(progress);
    }
    const failed = block.parts.find((part) => part.error);
    this.problem.hidden = !failed && !block.warning;
    this.problem.textContent = failed ? `${failed.name}: ${failed.error}` : block.warning ?? "";
    this.tick(Date.now() / 1000);
  }

  /** What changes by the clock alone: how long a stage without progress has been running. */
  tick(now) {
    const running = this.block.parts.find((part) => part.state === "running");
    if (running && !running.progress && running.started) {
      this.state.textContent = `${WORDS.running} for ${duration(Math.max(0, now - running.started))}`;
    }
  }
}

function progressText(progress) {
  const of = progress.total === null ? "" : ` of ${format(progress.total, "count")}`;
  const share = `${format(progress.done, "count")}${of} ${progress.unit}`;
  const rate = progress.rate ? `, ${format(Number(progress.rate.toPrecision(3)))}/s` : "";
  const left = progress.seconds_left === null ? "" : `, ${duration(progress.seconds_left)} left`;
  return share + rate + left;
}
