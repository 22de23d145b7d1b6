// The form of one of the planner's questions, from what the server says of its inputs.

import { h, marked } from "./dom.js";

export class PlannerForm {
  /** `values` (name -> text) holds what was typed in any form, and is kept up to date; `handlers`: change(), submit(). */
  constructor(question, values, handlers) {
    this.question = question;
    this.values = values;
    this.inputs = new Map();
    this.errors = new Map();
    this.general = h("p", { class: "error", role: "alert", hidden: true });
    const shown = question.fields.filter((field) => !field.folded).map((field) => this.#row(field));
    const folded = question.fields.filter((field) => field.folded);
    const changed = folded.some((field) => this.#text(field) !== field.default);
    this.more = folded.length ? h("details", { class: "more", open: changed }, h("summary", {}, "More inputs"), folded.map((field) => this.#row(field))) : null;
    const run = question.slow ? h("button", { type: "submit" }, "Simulate") : null;
    const onSubmit = (event) => {
      event.preventDefault();
      handlers.submit();
    };
    const onInput = (event) => {
      this.values.set(event.target.name, textOf(event.target));
      handlers.change();
    };
    this.node = h("form", { "aria-label": question.title, autocomplete: "off", on: { submit: onSubmit, input: onInput } }, this.general, shown, this.more, run);
  }

  /** Names and texts of the inputs that are not at their defaults. */
  changed() {
    return this.question.fields.filter((field) => this.#text(field) !== field.default).map((field) => [field.name, this.#text(field)]);
  }

  /** Puts `{ field, message }` beside its field, or above all; null takes every error away. */
  showError(error) {
    const found = error && this.errors.has(error.field);
    for (const [name, node] of this.errors) {
      const here = found && error.field === name;
      setError(node, here ? error.message : "");
      this.inputs.get(name).setAttribute("aria-invalid", String(Boolean(here)));
      if (here && this.more?.contains(node)) this.more.open = true;
    }
    setError(this.general, error && !found ? error.message : "");
  }

  #text(field) {
    return this.values.get(field.name) ?? field.default;
  }

  #row(field) {
    const id = `input-${field.name}`;
    const input = this.#input(field, id);
    const error = h("p", { class: "error", id: `${id}-error`, role: "alert", hidden: true });
    this.inputs.set(field.name, input);
    this.errors.set(field.name, error);
    const help = h("p", { class: "help", id: `${id}-help` }, marked(field.help));
    const unit = field.unit ? h("span", { class: "unit" }, field.unit) : null;
    if (field.kind === "flag") return h("div", { class: "field flag" }, input, h("label", { for: id }, field.label), help, error);
    const suggested = ["model", "device"].includes(field.kind) ? h("datalist", { id: `${id}-list` }, field.choices.map((choice) => h("option", { value: choice }))) : null;
    return h("div", { class: "field" }, h("label", { for: id }, field.label), h("div", { class: "entry" }, input, unit), suggested, help, error);
  }

  #input(field, id) {
    const common = { id, name: field.name, "aria-describedby": `${id}-help ${id}-error` };
    const text = this.#text(field);
    if (field.kind === "flag") return h("input", { ...common, type: "checkbox", checked: text === "yes" });
    if (field.kind === "choice") {
      const known = field.choices.includes(text) ? field.choices : [text, ...field.choices];
      return h("select", common, known.map((choice) => h("option", { value: choice, selected: choice === text }, choice || field.empty)));
    }
    const listed = ["model", "device"].includes(field.kind);
    const input = h("input", { ...common, type: "text", spellcheck: "false", inputmode: ["whole", "number"].includes(field.kind) ? "decimal" : null, list: listed ? `${id}-list` : null });
    input.value = text;
    if (listed) input.addEventListener("focus", () => input.select()); // what is typed then replaces the name
    return input;
  }
}

function textOf(input) {
  return input.type === "checkbox" ? (input.checked ? "yes" : "no") : input.value;
}

function setError(node, message) {
  node.hidden = !message;
  node.textContent = message;
}
