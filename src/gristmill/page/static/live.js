// The event stream, which resumes after the last event seen.

/**
 * Follows /api/events. `handlers`: event(event), restart(), state("live" | "reconnecting" | "paused").
 * The browser reconnects by itself and says with Last-Event-ID how far it came.
 */
export class Live {
  constructor(seq, handlers) {
    this.seq = seq;
    this.handlers = handlers;
    this.source = null;
    this.paused = false;
  }

  start() {
    this.paused = false;
    this.source = new EventSource(`api/events?after=${this.seq}`);
    this.source.addEventListener("open", () => this.handlers.state("live"));
    this.source.addEventListener("error", () => this.#failed());
    this.source.addEventListener("restart", () => {
      this.seq = 0;
      this.handlers.restart();
    });
    this.source.addEventListener("message", (message) => {
      const event = JSON.parse(message.data);
      if (event.seq <= this.seq) return;
      this.seq = event.seq;
      this.handlers.event(event);
    });
  }

  pause() {
    this.paused = true;
    this.source?.close();
    this.source = null;
    this.handlers.state("paused");
  }

  // A server that answers with an error ends an EventSource for good: begin another one.
  #failed() {
    this.handlers.state("reconnecting");
    if (this.source?.readyState === EventSource.CLOSED) {
      this.source = null;
      setTimeout(() => {
        if (!this.source && !this.paused) this.start();
      }, 3000);
    }
  }
}
