// The deployment panel's chat box and metrics: the browser asks the OpenAI-compatible server itself.

import { h } from "./dom.js";
import { number } from "./format.js";

const METRICS_MS = 2000;

export function chatSection(section, context) {
  return new Chat(section, context).node;
}

class Chat {
  constructor(section, context) {
    this.section = section;
    this.context = context;
    this.messages = [];
    this.abort = null;
    this.model = null;
    this.url = h("input", { id: "server-url", type: "url", value: context.server, autocomplete: "off" });
    this.status = h("p", { class: "readout", role: "status" });
    this.transcript = h("div", { class: "transcript", tabindex: "0", role: "log", "aria-label": "Conversation", "aria-live": "off" });
    this.input = h("textarea", { id: "chat-input", rows: "2", placeholder: "Ask the model" });
    this.stop = h("button", { type: "button", hidden: true, on: { click: () => this.abort?.abort() } }, "Stop");
    this.metrics = h("div", { class: "metrics" });
    this.metricRows = h("tbody");
    this.node = h("div", { class: "chat-box" },
      h("form", { class: "server", on: { submit: (event) => this.#submit(event, () => this.connect()) } },
        h("label", { for: this.url.id }, "Server"), this.url, h("button", { type: "submit" }, "Connect")),
      this.status, this.transcript,
      h("form", { class: "say", on: { submit: (event) => this.#submit(event, () => this.send()) } },
        h("label", { for: this.input.id, class: "hidden" }, "Your message"), this.input,
        h("button", { type: "submit" }, "Send"), this.stop,
        h("button", { type: "button", on: { click: () => this.#clear() } }, "New conversation")),
      this.metrics);
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.#submit(event, () => this.send());
    });
    this.connect();
    setInterval(() => this.#readMetrics(), METRICS_MS);
  }

  #submit(event, action) {
    event.preventDefault();
    action();
  }

  get #base() {
    return this.url.value.trim().replace(/\/+$/, "").replace(/\/v1$/, "");
  }

  /** Asks which model the server has; says what to do when nothing answers. */
  async connect() {
    this.model = null;
    try {
      const response = await fetch(`${this.#base}/v1/models`);
      const answer = await response.json();
      this.model = answer.data[0].id;
      this.status.textContent = `Connected; the model is ${this.model}.`;
      this.#readMetrics();
    } catch {
      this.#hint();
    }
    return this.model !== null;
  }

  #hint() {
    this.metrics.replaceChildren();
    this.status.replaceChildren(`No model server answers at ${this.#base}. Start one in a terminal and connect again: `, h("code", {}, this.section.command));
  }

  async send() {
    const text = this.input.value.trim();
    if (!text || this.abort) return;
    this.abort = new AbortController();
    if (this.model === null && !(await this.connect())) {
      this.abort = null;
      return;
    }
    this.input.value = "";
    this.messages.push({ role: "user", content: text });
    this.#add("you", text);
    const reply = this.#add("model", "");
    this.stop.hidden = false;
    try {
      await this.#stream(reply);
      this.messages.push({ role: "assistant", content: reply.textContent });
      this.status.textContent = "Reply finished.";
    } catch (error) {
      this.messages.pop();
      if (error.name === "AbortError") this.status.textContent = "Stopped.";
      else if (error instanceof ServerError) this.status.textContent = `The server refused: ${error.message}`;
      else this.#hint();
    }
    this.abort = null;
    this.stop.hidden = true;
  }

  async #stream(reply) {
    const response = await fetch(`${this.#base}/v1/chat/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: this.model, messages: this.messages, stream: true, max_tokens: 256 }),
      signal: this.abort.signal,
    });
    if (!response.ok) throw new ServerError(await errorMessage(response));
    for await (const data of serverSentData(response.body)) {
      if (data === "[DONE]") return;
      const piece = JSON.parse(data);
      if (piece.error) throw new ServerError(piece.error.message ?? "error");
      const content = piece.choices?.[0]?.delta?.content;
      if (content) {
        reply.append(content);
        this.transcript.scrollTop = this.transcript.scrollHeight;
      }
    }
  }

  #add(who, text) {
    const content = h("p", { class: "said" }, text);
    this.transcript.append(h("div", { class: `turn ${who}` }, h("p", { class: "who" }, who), content));
    this.transcript.scrollTop = this.transcript.scrollHeight;
    return content;
  }

  #clear() {
    this.abort?.abort();
    this.messages = [];
    this.transcript.replaceChildren();
    this.status.textContent = "";
  }

  async #readMetrics() {
    if (this.model === null || this.context.paused() || !this.node.isConnected || !this.node.checkVisibility()) return;
    try {
      const response = await fetch(`${this.#base}/metrics`);
      if (!response.ok) throw new ServerError(String(response.status));
      this.#showMetrics(parseMetrics(await response.text()));
    } catch (error) {
      if (error instanceof ServerError) this.metrics.replaceChildren(h("p", { class: "empty" }, "This server has no /metrics."));
      else {
        this.model = null;
        this.#hint();
      }
    }
  }

  #showMetrics(metrics) {
    const rows = metrics.map((m) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, m.name)), h("td", { class: "num" }, m.text), h("td", {}, m.help)));
    this.metricRows.replaceChildren(...rows);
    if (this.metricRows.isConnected) return;
    const head = ["metric", "value", "meaning"].map((name, i) => h("th", { scope: "col", class: i === 1 ? "num" : null }, name));
    const table = h("table", {}, h("thead", {}, h("tr", {}, head)), this.metricRows);
    this.metrics.replaceChildren(h("h4", {}, "Metrics of the server"), h("div", { class: "scroll tall", tabindex: "0" }, table));
  }
}

class ServerError extends Error {}

async function errorMessage(response) {
  try {
    const body = await response.json();
    return body.error?.message ?? body.detail ?? `HTTP ${response.status}`;
  } catch {
    return `HTTP ${response.status}`;
  }
}

/** The `data:` fields of a stream of server-sent events. */
async function* serverSentData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

/** Prometheus text as rows: counters and gauges as they are, histograms as count and mean. */
export function parseMetrics(text) {
  const help = new Map();
  const kinds = new Map();
  const values = new Map();
  for (const line of text.split("\n")) {
    const comment = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line);
    if (comment) (comment[1] === "HELP" ? help : kinds).set(comment[2], comment[3]);
    const sample = /^([^\s#{]+)(\{.*\})? (\S+)/.exec(line);
    if (sample && !sample[1].endsWith("_bucket") && !sample[1].endsWith("_created")) values.set(sample[1] + (sample[2] ?? ""), Number(sample[3]));
  }
  const rows = [];
  for (const [name, value] of values) {
    const plain = name.replace(/\{.*\}$/, "");
    const family = plain.replace(/_(count|sum)$/, "");
    if (kinds.get(family) !== "histogram") {
      rows.push({ name, text: number(value), help: help.get(plain) ?? help.get(plain.replace(/_total$/, "")) ?? "" });
    } else if (plain.endsWith("_sum")) {
      const count = values.get(name.replace(`${family}_sum`, `${family}_count`)) ?? 0;
      rows.push({ name: name.replace(`${family}_sum`, family), text: count ? `mean ${number(value / count)} of ${number(count)}` : "none yet", help: help.get(family) ?? "" });
    }
  }
  return rows;
}
