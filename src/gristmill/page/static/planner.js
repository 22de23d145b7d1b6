// The planner: always there, with the run's model or a preset. A question, its form, and the answer beside it.

import { h, marked, throttle } from "./dom.js";
import { PlannerForm } from "./planner_form.js";
import { provenanceLegend } from "./quantities.js";
import { Sections } from "./sections.js";

const ASK_MS = 300;
const PREFIX = "plan/";

export class Planner {
  /** `onChange()` is called when what `address` says has changed. */
  constructor(node, onChange) {
    this.onChange = onChange;
    this.values = new Map(); // name of an input -> what was typed, for every question that has it
    this.asked = 0;
    this.button = node.querySelector("button");
    this.body = node.querySelector("#planner-body");
    this.button.addEventListener("click", () => (this.isOpen ? this.close() : this.open()));
    this.askSoon = throttle(() => this.#ask(), ASK_MS);
  }

  get isOpen() {
    return !this.body.hidden;
  }

  /** The part of the page's address that leads back to this question and its inputs; null while closed. */
  get address() {
    if (!this.isOpen || !this.question) return null;
    const inputs = new URLSearchParams(this.form?.changed() ?? []);
    return `${PREFIX}${this.question.name}${inputs.size ? `?${inputs}` : ""}`;
  }

  /** Opens what a part of the address says. */
  async openAddress(part) {
    if (part === this.address) return;
    const [name, inputs] = part.slice(PREFIX.length).split("?");
    this.values = new Map(new URLSearchParams(inputs ?? ""));
    await this.open(name);
  }

  async open(name) {
    this.body.hidden = false;
    this.button.setAttribute("aria-expanded", "true");
    if (!this.forms && !(await this.#readForms())) return;
    const question = this.forms.questions.find((one) => one.name === name) ?? this.question ?? this.forms.questions[0];
    this.#choose(question);
  }

  close() {
    this.body.hidden = true;
    this.button.setAttribute("aria-expanded", "false");
    this.onChange();
  }

  async #readForms() {
    try {
      const response = await fetch("api/plan");
      this.forms = response.ok ? await response.json() : null;
    } catch {
      this.forms = null;
    }
    if (this.forms) this.#build();
    else this.body.replaceChildren(h("p", { class: "empty" }, "The page's server does not answer."));
    return this.forms;
  }

  #build() {
    this.tabs = this.forms.questions.map((question) =>
      h("button", { type: "button", role: "tab", id: `question-${question.name}`, "aria-controls": "planner-question", on: { click: () => this.#turnTo(question) } }, question.title));
    const list = h("div", { class: "tabs", role: "tablist", "aria-label": "Questions", on: { keydown: (event) => this.#moveTab(event) } }, this.tabs);
    this.about = h("p", { class: "about" });
    this.place = h("div", { class: "planner-form" });
    this.status = h("p", { class: "readout", role: "status" });
    this.command = h("code");
    this.sentences = h("div", { class: "sentences" });
    this.answer = h("div", { class: "answer" });
    this.sections = new Sections(this.answer, {});
    const as = h("p", { class: "command", hidden: true }, h("span", { class: "meta" }, "In a terminal "), this.command);
    this.as = as;
    this.panel = h("div", { id: "planner-question", class: "question", role: "tabpanel" }, this.about, this.place,
      h("div", { class: "answer-side" }, h("div", { class: "answer-head" }, this.status, provenanceLegend()), as, this.sentences, this.answer));
    this.body.replaceChildren(list, this.panel);
  }

  #choose(question) {
    this.question = question;
    this.tabs.forEach((tab, i) => {
      const chosen = this.forms.questions[i] === question;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    });
    this.panel.setAttribute("aria-labelledby", `question-${question.name}`);
    this.about.textContent = question.about;
    this.form = new PlannerForm(question, this.values, { change: () => this.#changed(), submit: () => this.#ask() });
    this.place.replaceChildren(this.form.node);
    this.sections = new Sections(this.answer, {});
    this.answer.replaceChildren();
    this.sentences.replaceChildren();
    this.as.hidden = true;
    this.onChange();
    this.#ask();
  }

  // Arrow keys, Home and End move along the questions, as in any list of tabs.
  #moveTab(event) {
    const at = this.tabs.indexOf(event.target);
    const last = this.tabs.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    this.tabs[to].focus();
    this.#turnTo(this.forms.questions[to]);
  }

  /** Another question, with what was typed so far: but for names of the same input that this question has not. */
  #turnTo(question) {
    for (const field of question.fields) {
      if (field.kind === "choice" && !field.choices.includes(this.values.get(field.name) ?? field.default)) this.values.delete(field.name);
    }
    this.#choose(question);
  }

  #changed() {
    this.onChange();
    if (!this.question.slow) return this.askSoon();
    this.#stale("The inputs have changed since this answer.");
  }

  async #ask() {
    this.asked += 1;
    const mine = this.asked;
    const { question, form } = this;
    if (question.slow) this.#stale("Simulating; this may take some seconds.");
    let response;
    let answer;
    try {
      response = await fetch(`api/plan/${question.name}?${new URLSearchParams(form.changed())}`);
      answer = await response.json();
    } catch {
      if (mine === this.asked) this.#stale("The page's server does not answer.");
      return;
    }
    if (mine !== this.asked) return;
    form.showError(response.ok ? null : answer);
    if (response.ok) this.#show(answer);
    else this.#stale(answer.field ? "An input cannot be used; see the form." : answer.message);
  }

  #show(answer) {
    this.body.dataset.answered = answer.question;
    this.panel.classList.remove("stale");
    this.as.hidden = false;
    this.command.textContent = answer.command;
    this.sentences.replaceChildren(...answer.sentences.map((sentence) => h("p", {}, marked(sentence))));
    const time = answer.seconds < 1 ? `${Math.max(1, Math.round(1000 * answer.seconds))} ms` : `${answer.seconds.toFixed(1)} s`;
    this.status.textContent = `Answered in ${time}.`;
    this.sections.render(answer.sections);
  }

  #stale(words) {
    delete this.body.dataset.answered;
    this.panel.classList.add("stale");
    this.status.textContent = words;
  }
}
