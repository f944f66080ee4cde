// What a run went through, beside what it shows (view.js): attempts, tries, what was rolled back, when what ran.

import { TERMINAL } from "./view.js";

/** How many events the log's list keeps; what was made of the older ones stays. */
export const EVENTS_MAX = 100_000;

export class History {
  constructor() {
    this.attempts = [];
    this.rollbacks = [];
    this.events = [];
    /** Spans of each instance, oldest first: one a start, whatever became of it. */
    this.spans = new Map();
    this.tries = new Map();
    this.offset = 0;
    this.start = null; // ms
    this.end = null;
  }

  apply(event) {
    if (event.offset <= this.offset) return;
    this.offset = event.offset;
    const time = Date.parse(event.time);
    this.start ??= time;
    this.end = Math.max(this.end ?? time, time);
    this.events.push(event);
    if (this.events.length > EVENTS_MAX) this.events.splice(0, EVENTS_MAX / 10);
    const id = event.component_id ?? "";
    const what = event[event.kind] ?? {};
    switch (event.kind) {
      case "attempt_started":
        this.#endAttempt(time, what.cause === "EXECUTOR_LOST" ? "lost" : "handed over");
        this.attempts.push({
          number: event.attempt,
          start: time,
          end: null,
          ended: "",
          executorId: what.executor_id ?? "",
          deployment: what.deployment ?? "",
          cause: what.cause ?? "",
        });
        break;
      case "component_started":
        this.#open(id, event, time);
        break;
      case "component_retrying": {
        const span = this.#close(id, time, "retried", event);
        // The next try begins after the delay, mostly without an event of its own.
        this.#push(id, {
          start: time + 1000 * (what.delay_s ?? 0),
          attempt: event.attempt ?? 0,
          offset: event.offset,
          awaited: true,
        });
        if (!this.tries.has(id)) this.tries.set(id, []);
        this.tries.get(id).push({
          number: what.try_number ?? 0,
          attempt: event.attempt ?? 0,
          error: what.error ?? {},
          delayS: what.delay_s ?? 0,
          start: span?.start ?? null,
          end: time,
          after: span?.offset ?? 0,
          offset: event.offset,
        });
        break;
      }
      case "component_finished":
        this.#close(id, time, { OK: "ok", CANCELLED: "cancelled" }[what.outcome] ?? "error", event);
        break;
      case "rollback":
        this.rollbacks.push({
          offset: event.offset,
          time,
          cause: what.cause ?? "",
          ids: what.component_ids ?? [],
          after: what.after_offset ?? 0,
        });
        break;
      case "run_waiting":
        this.#endAttempt(time, "parked");
        break;
      case "run_state_changed":
        if (TERMINAL.has(what.state)) {
          this.#endAttempt(time, what.state.toLowerCase());
          for (const spans of this.spans.values())
            if (spans.at(-1).end === null) this.#end(spans.at(-1), time, "cancelled");
        }
        if (what.state === "PAUSED") this.#endAttempt(time, "paused");
        else if (what.state === "QUEUED") this.#endAttempt(time, what.reason || "queued again");
        break;
    }
  }

  /** What an instance had shown between two offsets and a rollback voided since: texts of its failed tries. */
  voided(id, after, before) {
    const texts = [];
    for (const event of this.events) {
      if (event.offset <= after || event.offset >= before || (event.component_id ?? "") !== id) continue;
      if (event.kind === "output_delta" && event.output_delta.text) texts.push(event.output_delta.text);
    }
    return texts.join("");
  }

  #open(id, event, time) {
    const spans = this.spans.get(id) ?? [];
    const last = spans.at(-1);
    if (last && last.end === null) {
      if (last.awaited && last.attempt === event.attempt) {
        last.start = time;
        last.awaited = false;
        return;
      }
      // A later attempt began it anew: the span before it was lost with its executor.
      if (last.awaited && last.start > time) spans.pop();
      else this.#end(last, this.attempts.at(-2)?.end ?? time, "lost");
    }
    this.#push(id, { start: time, attempt: event.attempt ?? 0, offset: event.offset });
  }

  #push(id, span) {
    if (!this.spans.has(id)) this.spans.set(id, []);
    this.spans.get(id).push({ end: null, outcome: "running", awaited: false, ...span });
  }

  #close(id, time, outcome, event) {
    const span = this.spans.get(id)?.at(-1);
    if (span && span.end === null) this.#end(span, time, outcome);
    // Read from its middle, or given without having run.
    else if (event.kind === "component_finished")
      this.#push(id, { start: time, end: time, outcome, attempt: event.attempt ?? 0, offset: event.offset });
    return span;
  }

  #end(span, time, outcome) {
    span.start = Math.min(span.start, time);
    span.end = time;
    span.outcome = outcome;
  }

  #endAttempt(time, how) {
    const attempt = this.attempts.at(-1);
    if (!attempt || attempt.end !== null) return;
    attempt.end = time;
    attempt.ended = how;
  }
}
