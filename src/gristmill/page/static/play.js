// The tokenization panel's own tools: text coloured by token, how its words were built, a search through the vocabulary.

import { h, throttle } from "./dom.js";
import { format } from "./format.js";

const COLOURS = 6;

export function playSection(section) {
  const input = h("textarea", { id: "play-text", rows: "3", spellcheck: "false", maxlength: "20000" });
  input.value = section.text;
  const built = new Built();
  const shown = new Pieces((piece, words) => built.show(piece, words));
  const count = h("p", { class: "readout", role: "status" });
  const body = h("tbody");
  const twin = h("details", { class: "twin" }, h("summary", {}, "View as table"),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["piece", "ids"].map((name) => h("th", { scope: "col" }, name)))), body)));
  let asked = 0;
  const ask = async () => {
    asked += 1;
    const mine = asked;
    try {
      const answer = await postJson("api/tokenize", { text: input.value });
      if (mine === asked) show(answer);
    } catch {
      count.textContent = "The page's server does not answer.";
    }
  };
  const show = (answer) => {
    built.clear();
    shown.show(answer.pieces ?? [], answer.words ?? []);
    if (answer.error) {
      count.textContent = answer.error;
      return;
    }
    body.replaceChildren(...answer.pieces.map((piece) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, JSON.stringify(piece.text))), h("td", {}, piece.ids.join(" ")))));
    const each = answer.tokens ? `, ${(answer.bytes / answer.tokens).toFixed(2)} bytes per token` : "";
    count.textContent = `${format(answer.tokens, "count")} tokens for ${format(answer.bytes, "count")} bytes${each}`;
  };
  input.addEventListener("input", throttle(ask, 200));
  ask();
  return h("div", { class: "play" }, h("div", {}, h("label", { for: input.id }, "Your own text"), input, shown.node, count, built.node, twin), searchBox());
}

/** The coloured pieces. One is chosen with the mouse, or with the arrow keys once the text has the focus. */
class Pieces {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.node = h("p", { class: "tokens", role: "listbox", tabindex: "0", "aria-label": "The text, divided into tokens", "aria-orientation": "horizontal" });
    this.node.addEventListener("click", (event) => this.#choose([...this.node.children].indexOf(event.target)));
    this.node.addEventListener("keydown", (event) => this.#key(event));
  }

  show(pieces, words) {
    this.pieces = pieces;
    this.words = words;
    this.chosen = -1;
    this.node.removeAttribute("aria-activedescendant");
    this.node.replaceChildren(...pieces.map((piece, i) =>
      h("span", { class: `token colour-${i % COLOURS}`, id: `piece-${i}`, role: "option", "aria-selected": "false", title: ids(piece) }, piece.text)));
  }

  #key(event) {
    const last = this.pieces.length - 1;
    const to = { ArrowRight: Math.min(this.chosen + 1, last), ArrowLeft: Math.max(this.chosen - 1, 0), Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#choose(to);
  }

  #choose(index) {
    if (index < 0 || !this.pieces[index]) return;
    this.node.children[this.chosen]?.setAttribute("aria-selected", "false");
    this.chosen = index;
    const chosen = this.node.children[index];
    chosen.setAttribute("aria-selected", "true");
    chosen.scrollIntoView({ block: "nearest" });
    this.node.setAttribute("aria-activedescendant", chosen.id);
    this.onChoose(this.pieces[index], this.words);
  }
}

/** How the word of the chosen piece was built: the merges, in order, and the word after each. */
class Built {
  constructor() {
    this.node = h("div", { class: "built", "aria-live": "polite", hidden: true });
  }

  clear() {
    this.asked = null;
    this.node.hidden = true;
  }

  async show(piece, words) {
    this.asked = piece;
    const word = piece.word === undefined ? null : words[piece.word];
    const answer = word === null ? { error: "Only the words of byte-level BPE are built by merges." } : await this.#ask(word);
    if (this.asked !== piece) return;
    this.node.replaceChildren(h("h4", {}, `${ids(piece)}: `, h("code", {}, visible(piece.text))), ...(answer.error ? [h("p", { class: "note" }, answer.error)] : this.#steps(answer)));
    this.node.hidden = false;
  }

  async #ask(word) {
    try {
      const response = await fetch(`api/merges?${new URLSearchParams({ word })}`);
      return response.ok ? await response.json() : { error: "This word is too long to show." };
    } catch {
      return { error: "The page's server does not answer." };
    }
  }

  #steps(answer) {
    const word = h("code", {}, visible(answer.word));
    if (!answer.steps.length) {
      const why = answer.begins.length > 1 ? "No two neighbours in it were ever merged, or it is in the vocabulary as a whole." : "It is a single byte: nothing was merged.";
      return [h("p", { class: "note" }, "In the word ", word, ". ", why)];
    }
    const head = ["merge", "pair", "the word after it"].map((name, i) => h("th", { scope: "col", class: i === 0 ? "num" : null }, name));
    const rows = answer.steps.map((step) => h("tr", {}, h("th", { scope: "row", class: "num" }, format(step.number, "count")),
      h("td", { class: "pair-cell" }, h("code", {}, visible(step.left)), " + ", h("code", {}, visible(step.right))), h("td", {}, parts(step.parts))));
    const begin = h("tr", {}, h("th", { scope: "row" }, ""), h("td", {}, "single bytes"), h("td", {}, parts(answer.begins)));
    const note = "The number of a merge is its place among all that were learned; in a word the earliest learned goes first.";
    return [h("p", { class: "note" }, "How the word ", word, " was built:"), h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, begin, rows))), h("p", { class: "note" }, note)];
  }
}

function parts(texts) {
  return h("span", { class: "parts" }, texts.map((text) => h("code", {}, visible(text))));
}

/** The text with signs for what does not show by itself. */
function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\r", "␍").replaceAll("\t", "⇥");
}

function ids(piece) {
  return `${piece.ids.length === 1 ? "token" : "tokens"} ${piece.ids.join(" ")}`;
}

function searchBox() {
  const query = h("input", { id: "vocabulary-query", type: "search", autocomplete: "off" });
  const body = h("tbody");
  const status = h("p", { class: "readout", role: "status" });
  const more = h("button", { type: "button", hidden: true }, "Show more");
  let next = 0;
  const look = async (start) => {
    const answer = await (await fetch(`api/vocabulary?${new URLSearchParams({ query: query.value, start })}`)).json();
    const rows = answer.rows.map((row) => h("tr", {}, h("th", { scope: "row", class: "num" }, String(row.id)), h("td", {}, h("code", {}, row.text)), h("td", { class: "num" }, String(row.bytes))));
    if (start) body.append(...rows);
    else body.replaceChildren(...rows);
    next = answer.next;
    more.hidden = next === null;
    status.textContent = answer.error ?? `${format(body.children.length, "count")} of ${format(answer.total, "count")} entries`;
  };
  const safely = (start) => look(start).catch(() => { status.textContent = "The page's server does not answer."; });
  query.addEventListener("input", throttle(() => safely(0), 200));
  more.addEventListener("click", () => safely(next));
  safely(0);
  const head = ["id", "text", "bytes"].map((name, i) => h("th", { scope: "col", class: i === 1 ? null : "num" }, name));
  return h("div", { class: "vocabulary" }, h("label", { for: query.id }, "Search the vocabulary, by text or id"), query,
    h("div", { class: "scroll tall" }, h("table", {}, h("thead", {}, h("tr", {}, head)), body)), h("p", {}, more), status);
}

async function postJson(url, value) {
  const response = await fetch(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
  if (!response.ok) throw new Error(String(response.status));
  return response.json();
}
