// The tokenization panel's own tools: text coloured by token, and a search through the vocabulary.

import { h, throttle } from "./dom.js";
import { format } from "./format.js";

const COLOURS = 6;

export function playSection(section) {
  const input = h("textarea", { id: "play-text", rows: "3", spellcheck: "false", maxlength: "20000" });
  input.value = section.text;
  const shown = h("p", { class: "tokens", "aria-label": "The text, divided into tokens" });
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
    if (answer.error) {
      shown.replaceChildren();
      count.textContent = answer.error;
      return;
    }
    shown.replaceChildren(...answer.pieces.map((piece, i) => h("span", { class: `token colour-${i % COLOURS}`, title: ids(piece) }, piece.text)));
    body.replaceChildren(...answer.pieces.map((piece) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, JSON.stringify(piece.text))), h("td", {}, piece.ids.join(" ")))));
    const each = answer.tokens ? `, ${(answer.bytes / answer.tokens).toFixed(2)} bytes per token` : "";
    count.textContent = `${format(answer.tokens, "count")} tokens for ${format(answer.bytes, "count")} bytes${each}`;
  };
  input.addEventListener("input", throttle(ask, 200));
  ask();
  return h("div", { class: "play" }, h("div", {}, h("label", { for: input.id }, "Your own text"), input, shown, count, twin), searchBox());
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
