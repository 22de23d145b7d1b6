// The page: takes the snapshot, follows the events, keeps the open panels up to date.

import { h, throttle } from "./dom.js";
import { duration } from "./format.js";
import { Live } from "./live.js";
import { Planner } from "./planner.js";
import { Rail } from "./rail.js";
import { Sections } from "./sections.js";

const RUN_MS = 1000; // the rail is read again at most this often while events come in
const PANEL_MS = 3000; // and an open panel of a running stage
const STRUCTURAL = new Set(["run_started", "run_finished", "run_failed", "stage_started", "stage_skipped", "stage_finished", "stage_failed"]);
const QUIET_SECONDS = 30; // without an event: look whether the run is still there
const STATES = { empty: "not started", running: "running", finished: "finished", failed: "failed", stopped: "stopped before its end" };

const root = document.documentElement;
const isRunning = (snapshot) => snapshot.run?.state === "running";
const text = (id, value) => { document.getElementById(id).textContent = value; };

class Page {
  constructor(snapshot) {
    this.snapshot = snapshot;
    this.panels = new Map(); // key -> Sections
    this.context = { server: snapshot.server, paused: () => this.live?.paused ?? false };
    this.rail = new Rail(document.getElementById("rail"), snapshot.blocks, isRunning(snapshot), (key, open) => this.toggle(key, open));
    this.planner = new Planner(document.getElementById("planner"), () => this.#writeHash());
    this.refreshRun = throttle(() => this.#readRun(), RUN_MS);
    this.refreshPanels = throttle(() => this.#readPanels(), PANEL_MS);
    this.show(snapshot);
  }

  async start() {
    addEventListener("hashchange", () => this.#openFromHash());
    await this.#openFromHash();
    if (!this.snapshot.run) {
      document.getElementById("pause").hidden = true;
      return;
    }
    this.live = new Live(this.snapshot.seq, {
      event: (event) => this.#event(event),
      restart: () => this.#everything(),
      state: (state) => this.#connection(state),
    });
    this.live.start();
    document.getElementById("pause").addEventListener("click", () => this.#pause());
    setInterval(() => this.#tick(), 1000);
  }

  show(snapshot) {
    this.snapshot = snapshot;
    const run = snapshot.run;
    document.title = run ? `${run.name} · ${STATES[run.state]} · gristmill` : "gristmill";
    text("run-name", run ? run.name : `Server ${snapshot.server}`);
    const error = document.getElementById("run-error");
    error.hidden = !run?.error;
    error.textContent = run?.error ? `The run failed: ${run.error}` : "";
    this.rail.update(snapshot.blocks, isRunning(snapshot));
    root.dataset.seq = String(snapshot.seq);
    this.#tick();
  }

  /** Opens or closes a stage's panel and keeps the address in step, so that it can be shared or reloaded. */
  async toggle(key, open) {
    const row = this.rail.rows.get(key);
    row.open = open;
    this.#writeHash();
    if (open) await this.#readPanel(key);
  }

  #writeHash() {
    const parts = [...this.rail.rows.values()].filter((row) => row.open).map((row) => row.key);
    if (this.planner.address) parts.push(this.planner.address);
    history.replaceState(null, "", parts.length ? `#${parts.join(",")}` : location.pathname);
  }

  #event(event) {
    root.dataset.seq = String(event.seq);
    if (event.type === "metric") for (const sections of this.panels.values()) sections.push(event.stage, event);
    this.refreshRun();
    if (STRUCTURAL.has(event.type)) this.#everything();
    else if (event.type !== "progress") this.refreshPanels();
  }

  #everything() {
    this.refreshRun();
    this.refreshPanels();
  }

  async #readRun() {
    const snapshot = await getJson("api/run");
    if (snapshot) this.show(snapshot);
  }

  async #readPanels() {
    await Promise.all([...this.rail.rows.values()].filter((row) => row.open).map((row) => this.#readPanel(row.key)));
  }

  async #readPanel(key) {
    const panel = this.rail.rows.get(key).panel;
    if (!this.panels.has(key)) {
      this.panels.set(key, new Sections(panel, this.context));
      panel.setAttribute("aria-busy", "true");
    }
    const answer = await getJson(`api/panel/${key}`);
    panel.removeAttribute("aria-busy");
    if (answer) this.panels.get(key).render(answer.sections);
    else if (!panel.children.length) panel.replaceChildren(h("p", { class: "empty" }, "The page's server does not answer."));
  }

  async #openFromHash() {
    const hash = location.hash.slice(1);
    const at = hash.search(/(?<=^|,)plan\//); // what follows is the planner's, commas and all
    const wanted = new Set((at < 0 ? hash : hash.slice(0, at)).split(","));
    const rows = [...this.rail.rows.values()].filter((row) => wanted.has(row.key) && !row.open);
    await Promise.all([...rows.map((row) => this.toggle(row.key, true)), at < 0 ? null : this.planner.openAddress(hash.slice(at))]);
  }

  #pause() {
    const paused = !this.live.paused;
    const button = document.getElementById("pause");
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Resume updates" : "Pause updates";
    if (paused) this.live.pause();
    else {
      this.live.start();
      this.#everything();
    }
  }

  #connection(state) {
    root.dataset.connection = state;
    text("connection", { live: "live", reconnecting: "reconnecting", paused: "paused" }[state]);
  }

  /** The line under the run's name: how long it has been going on and how long nothing has been heard. */
  #tick() {
    const run = this.snapshot.run;
    if (!run) return text("run-status", "No run, only a model server: see Deployment.");
    const now = Date.now() / 1000;
    const parts = [STATES[run.state]];
    if (run.state === "running" && !this.context.paused()) {
      parts.push(`for ${duration(Math.max(0, now - run.started))}`);
      const quiet = now - run.last_event;
      if (quiet > QUIET_SECONDS) {
        parts.push(`· last heard of ${duration(quiet)} ago`);
        if (Math.floor(quiet) % QUIET_SECONDS === 0) this.refreshRun();
      }
    } else if (run.state === "finished" && run.seconds) parts.push(`in ${duration(run.seconds)}`);
    else if (run.state === "stopped") parts.push("· run it again to go on from there");
    if (!this.context.paused()) this.rail.tick(now);
    return text("run-status", parts.join(" "));
  }
}

async function getJson(url) {
  try {
    const response = await fetch(url);
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

async function boot() {
  const snapshot = await getJson("api/run");
  if (!snapshot) {
    text("run-name", "The page's server does not answer.");
    return;
  }
  await new Page(snapshot).start();
  root.dataset.ready = "true";
}

boot();
