// Follows one run: its events come as NDJSON, go into a View and a History, and whoever draws is told once a frame.
//
// A hidden page holds no connection (a browser has six to a host): it is closed, and taken up at its cursor.

import { ask, lines, Problem, request } from "./door.js";
import { History } from "./history.js";
import { TERMINAL, View } from "./view.js";

const PAUSES_MS = [200, 500, 1000, 2000, 5000];
const HIDDEN_MS = 5000;
const RUN_EVERY_MS = 3000;
/** While a long log comes in it is drawn this often. */
const CATCH_UP_MS = 200;
/** The door says something at least every ten seconds; a connection that is silent for longer than this is dead. */
const SILENCE_MS = 35_000;

export class Following {
  #listeners = new Set();
  #closing = new AbortController();
  #connection = null;
  #cursor = "";
  #frame = 0;
  #drawn = 0;
  #tail = 0;
  #hidden = 0;
  #fetching = null;
  #again = false;

  constructor(runId) {
    this.path = `/v1/runs/${encodeURIComponent(runId)}`;
    this.run = null;
    this.problem = null;
    /** Whether the run was still going when it was first seen. */
    this.live = false;
    /** "connecting", "live", "away" (will try again) or "ended". */
    this.connection = "connecting";
    this.#reset();
    document.addEventListener("visibilitychange", this.#seen);
    this.#timer = setInterval(() => !this.ended && !document.hidden && this.refresh(), RUN_EVERY_MS);
    this.refresh();
    this.#follow();
  }

  #timer;

  /** Call `listener` after changes, at most once a frame. Returns what takes it back. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get ended() {
    return this.connection === "ended";
  }

  /** Whether the newest event that the log had when it was opened was read. */
  get caughtUp() {
    return this.view.offset >= this.#tail && this.connection !== "connecting";
  }

  close() {
    clearInterval(this.#timer);
    clearTimeout(this.#hidden);
    document.removeEventListener("visibilitychange", this.#seen);
    this.#closing.abort();
    this.#connection?.abort();
    cancelAnimationFrame(this.#frame);
    this.#listeners.clear();
  }

  /** Read the run's record: what is in no event (usage, who holds it). One request at a time. */
  async refresh() {
    if (this.#fetching) {
      this.#again = true;
      return;
    }
    this.#fetching = true;
    try {
      this.run = await ask(this.path, { signal: this.#closing.signal });
      this.#changed();
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      if (error instanceof Problem && error.status === 404) this.#fail(error);
    } finally {
      this.#fetching = null;
      if (this.#again) {
        this.#again = false;
        this.refresh();
      }
    }
  }

  #reset() {
    this.view = new View();
    this.history = new History();
    this.#cursor = "";
    this.#tail = 0;
  }

  async #follow() {
    const closed = this.#closing.signal;
    for (let tries = 0; !closed.aborted;) {
      if (document.hidden) await this.#shown();
      const before = this.view.offset;
      try {
        if (await this.#connect()) {
          this.connection = "ended";
          this.refresh();
          return;
        }
        tries = 0; // handed off: at once
      } catch (error) {
        if (closed.aborted) return;
        if (document.hidden) continue; // we closed it
        if (error.reason === "LOG_REBUILT" || error.reason === "OFFSET_AHEAD")
          this.#reset(); // another log: read it anew
        else if (error instanceof Problem && [400, 403, 404, 410].includes(error.status)) {
          this.#fail(error);
          return;
        }
        this.connection = "away";
        this.#changed();
        if (this.view.offset > before) tries = 0;
        const pause = PAUSES_MS[Math.min(tries++, PAUSES_MS.length - 1)];
        await new Promise((resolve) => setTimeout(resolve, pause * (0.75 + Math.random() / 2)));
      }
    }
  }

  /** Read until the stream ends; true when the log is closed and was read to its end. */
  async #connect() {
    this.#connection = new AbortController();
    const after = this.#cursor ? `?after=${encodeURIComponent(this.#cursor)}` : "";
    const response = await request(`${this.path}/events${after}`, {
      accept: "application/x-ndjson",
      signal: this.#connection.signal,
    });
    if (response.status === 204) return true;
    for await (const message of this.#heard(lines(response))) {
      if (message.opened) {
        this.connection = "live";
        this.problem = null;
        this.#tail = message.opened.run?.log?.last_offset ?? 0;
        this.run = { ...this.run, ...message.opened.run };
        this.live ||= !TERMINAL.has(message.opened.run?.state);
      } else if (message.event) this.#take(message.event);
      else if (message.problem) throw new Problem(message.problem.status, message.problem);
      else if (message.completed) {
        this.run = { ...this.run, ...message.completed.run };
        this.#changed();
        return true;
      } else if (message.handoff) {
        await new Promise((resolve) => setTimeout(resolve, (message.handoff.retry_delay_s ?? 0) * 1000));
      }
      if (message.cursor) this.#cursor = message.cursor;
      this.#changed();
      if (message.handoff) return false;
    }
    throw new Problem(0, { detail: "The stream was cut" });
  }

  async *#heard(messages) {
    const connection = this.#connection;
    const hangUp = () => connection.abort();
    let silence = setTimeout(hangUp, SILENCE_MS);
    let since = performance.now();
    try {
      for await (const message of messages) {
        if (performance.now() - since > 1000) {
          clearTimeout(silence);
          silence = setTimeout(hangUp, SILENCE_MS);
          since = performance.now();
        }
        yield message;
      }
    } finally {
      clearTimeout(silence);
    }
  }

  #take(event) {
    if (event.offset > this.view.offset + 1)
      throw new Problem(0, { detail: `Events ${this.view.offset + 1} to ${event.offset - 1} did not come` });
    this.view.apply(event);
    this.history.apply(event);
    if (event.kind === "attempt_started" || event.kind === "run_state_changed" || event.kind === "run_waiting")
      if (this.caughtUp) this.refresh();
  }

  #fail(error) {
    this.problem = error;
    this.connection = "ended";
    this.#connection?.abort();
    this.#changed();
  }

  #changed() {
    if (this.#frame || this.#closing.signal.aborted) return;
    this.#frame = requestAnimationFrame((now) => {
      this.#frame = 0;
      if (!this.caughtUp && now - this.#drawn < CATCH_UP_MS && !this.problem) {
        this.#changed();
        return;
      }
      this.#drawn = now;
      for (const listener of this.#listeners) listener();
    });
  }

  #seen = () => {
    clearTimeout(this.#hidden);
    if (document.hidden) this.#hidden = setTimeout(() => !this.ended && this.#connection?.abort(), HIDDEN_MS);
  };

  #shown() {
    return new Promise((resolve) => {
      const seen = () => {
        if (document.hidden) return;
        document.removeEventListener("visibilitychange", seen);
        this.connection = "connecting";
        resolve();
      };
      document.addEventListener("visibilitychange", seen);
    });
  }
}

export { TERMINAL };
