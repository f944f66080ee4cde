// From a run's log to what a user sees: the same fold as onward.views in Python, kept equal by a test that feeds both.
//
// Events come in the HTTP door's JSON. Payloads are kept as they came; `decode` gives what a program sees of one.

import { Document, PatchError } from "./patch.js";

export const TERMINAL = new Set(["SUCCEEDED", "FAILED", "CANCELLED"]);

/** A value that is kept apart from the log; the door serves it under its url. */
export class Blob {
  constructor(payload) {
    this.url = payload.blob;
    this.size = payload.size ?? 0;
    this.mediaType = payload.media_type || "application/json";
  }
}

/** A value that is neither JSON nor text. */
export class Bytes {
  constructor(payload) {
    this.base64 = payload.base64;
    this.mediaType = payload.media_type || "application/octet-stream";
  }
}

/** The value of a payload: null where there is none, or where readers may not see it. */
export function decode(payload) {
  if (!payload) return null;
  if ("value" in payload) return payload.value;
  if ("blob" in payload) return new Blob(payload);
  if ("base64" in payload) return text(payload) ?? new Bytes(payload);
  return null;
}

function text({ media_type, base64 }) {
  if (!media_type?.toLowerCase().startsWith("text/")) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(
      Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)),
    );
  } catch {
    return null;
  }
}

/** One part of a component's output: a text, a reasoning trace, a tool call, items. */
class Part {
  constructor(number, channel) {
    this.number = number;
    this.channel = channel;
    this.texts = [];
    this.values = [];
    /** How often pieces were taken back: who has drawn some of them draws them again. */
    this.voided = 0;
  }

  get text() {
    return this.texts.join("");
  }
}

/** One instance of a component, as far as it has come. The workflow's own body is the one without an id. */
class Component {
  constructor(id) {
    this.id = id;
    this.name = "";
    this.parentId = "";
    this.state = "running"; // also between two tries
    this.tries = 0;
    this.retrying = false;
    this.error = null;
    this.startedTime = null;
    this.finishedTime = null;
    this.dueTime = null;
    this.input = null; // payloads
    this.output = null;
    this.cached = false;
    this.usage = null;
    this.statuses = [];
    this.parts = new Map();
  }

  get status() {
    return this.statuses.at(-1) ?? null;
  }

  get text() {
    return this.#of("TEXT")
      .map((part) => part.text)
      .join("");
  }

  get reasoning() {
    return this.#of("REASONING")
      .map((part) => part.text)
      .join("");
  }

  get items() {
    return this.#of("ITEM").flatMap((part) => part.values);
  }

  get tools() {
    return this.#of("TOOL").flatMap((part) => part.values);
  }

  /** Its parts in the order of their numbers. */
  get ordered() {
    return [...this.parts.values()].sort((one, other) => one.number - other.number);
  }

  /** Whether nothing is known of it. */
  get blank() {
    return (
      this.state === "running" &&
      !this.tries &&
      this.startedTime === null &&
      this.finishedTime === null &&
      !this.statuses.length &&
      !this.parts.size
    );
  }

  #of(channel) {
    return this.ordered.filter((part) => part.channel === channel);
  }
}

/** What was published under one name. Any of it can turn out void later; what is left then counts alone. */
class Publications {
  #revisions = [];
  #applied = 0;
  #document = null;
  #events = [];

  get events() {
    return this.#events.map((event) => event.value);
  }

  get empty() {
    return !this.#events.length && !this.#revisions.length;
  }

  add(offset, published) {
    if (published.change === "SET" || published.change === "PATCH")
      this.#revisions.push({ offset, patch: published.change === "PATCH", payload: published.value, undo: null });
    else this.#events.push({ offset, value: decode(published.value) });
  }

  drop(offset) {
    const at = this.#events.findLastIndex((event) => event.offset === offset);
    if (at >= 0) {
      this.#events.splice(at, 1);
      return;
    }
    const index = this.#revisions.findLastIndex((revision) => revision.offset === offset);
    while (this.#applied > index) {
      const revision = this.#revisions[--this.#applied];
      revision.undo?.();
      revision.undo = null;
    }
    this.#revisions.splice(index, 1);
  }

  /** The state now, null where nothing was set. */
  document() {
    for (; this.#applied < this.#revisions.length; this.#applied++) {
      const revision = this.#revisions[this.#applied];
      revision.undo = revision.patch ? this.#patch(revision.payload) : this.#set(revision.payload);
    }
    return this.#document;
  }

  #set(payload) {
    const old = this.#document;
    // A copy, as below: the document is changed in place, the event is not.
    const value = decode(payload);
    this.#document = new Document(value instanceof Blob || value instanceof Bytes ? value : structuredClone(value));
    return () => (this.#document = old);
  }

  #patch(payload) {
    const document = this.#document;
    if (document === null || !payload || !("value" in payload)) return null;
    try {
      const steps = document.patch(structuredClone(payload.value));
      return () => Document.undo(steps);
    } catch (error) {
      if (error instanceof PatchError) return null;
      throw error;
    }
  }
}

/** What a user sees of a run. Feed it the run's events in order; it can be read after any of them. */
export class View {
  #children = new Map();
  #requests = new Map();
  #names = new Map();
  #trails = new Map();

  constructor() {
    this.offset = 0;
    this.state = "UNSPECIFIED";
    this.done = false;
    this.attempt = 0;
    this.deployment = "";
    this.body = new Component("");
    this.components = new Map();
    this.output = null; // a payload
    this.continuedAs = "";
    this.error = null;
    this.reason = "";
    this.waiting = null;
    this.childRuns = [];
    /** Goes up when an instance comes, goes or moves. */
    this.shape = 0;
  }

  /** Take in the next event. One that was taken in already is skipped, and so is a kind newer than this page. */
  apply(event) {
    if (event.offset <= this.offset) return;
    this.offset = event.offset;
    this[ON[event.kind]]?.(event, event[event.kind] ?? {});
  }

  get text() {
    return this.body.text;
  }

  /** The newest line of progress in the whole run. */
  get status() {
    let newest = null;
    for (const component of this.instances()) {
      const last = component.status;
      if (last && (!newest || last.offset > newest.offset)) newest = last;
    }
    return newest;
  }

  get statuses() {
    return [...this.instances()].flatMap((component) => component.statuses).sort((a, b) => a.offset - b.offset);
  }

  /** Values of the published events by name. */
  get events() {
    const lists = [...this.#names].map(([name, publications]) => [name, publications.events]);
    return new Map(lists.filter(([, values]) => values.length));
  }

  /** Published states by name. */
  get states() {
    const documents = [...this.#names].map(([name, publications]) => [name, publications.document()]);
    return new Map(
      documents.filter(([, document]) => document !== null).map(([name, document]) => [name, document.value]),
    );
  }

  /** Questions that nobody has answered yet, oldest first. */
  get requests() {
    return [...this.#requests.values()];
  }

  /** The instances that an instance called, in the order they began. */
  children(id = "") {
    return (this.#children.get(id) ?? []).map((child) => this.components.get(child)).filter(Boolean);
  }

  *instances() {
    yield this.body;
    yield* this.components.values();
  }

  instance(id) {
    return id ? this.components.get(id) : this.body;
  }

  /** The instance, also where it speaks before its start was read: a log may be read from its middle. */
  #instance(id = "") {
    if (!id) return this.body;
    let component = this.components.get(id);
    if (!component) {
      this.components.set(id, (component = new Component(id)));
      this.shape++;
    }
    return component;
  }

  #trail(id = "") {
    let trail = this.#trails.get(id);
    if (!trail) this.#trails.set(id, (trail = { pieces: [], published: [] }));
    return trail;
  }

  onRunStateChanged(event, change) {
    this.state = change.state ?? "UNSPECIFIED";
    this.reason = change.reason ?? "";
    this.output = change.output ?? null;
    this.continuedAs = change.continued_as_run_id ?? "";
    this.error = change.error ?? null;
    this.waiting = null;
    this.done = TERMINAL.has(this.state);
    if (this.done) {
      this.#requests.clear();
      // Whoever had no chance to say that it ended does not run any more.
      for (const component of this.components.values())
        if (component.state === "running") component.state = "cancelled";
    }
  }

  onAttemptStarted(event, started) {
    this.attempt = event.attempt ?? 0;
    this.deployment = started.deployment ?? "";
    this.waiting = null;
    // A run that has to clean up after its cancellation needs an attempt too.
    if (this.state !== "CANCELLING") {
      this.state = "RUNNING";
      this.error = null;
      this.reason = "";
    }
  }

  onComponentStarted(event, started) {
    const component = this.#instance(event.component_id);
    const parentId = started.parent_id ?? "";
    if (component.startedTime === null && component !== this.body) {
      if (!this.#children.has(parentId)) this.#children.set(parentId, []);
      this.#children.get(parentId).push(component.id);
      this.shape++;
    }
    component.name = started.name ?? "";
    component.parentId = parentId;
    // Where a lost attempt had left it running, or between two tries, its tries are counted on.
    if (!component.tries || (component.state !== "running" && !component.retrying)) {
      component.tries = 1;
      component.error = null;
    }
    component.state = "running";
    component.retrying = false;
    component.startedTime = event.time ?? "1970-01-01T00:00:00Z";
    component.finishedTime = null;
    component.dueTime = started.due_time ?? null;
    component.input = started.input ?? null;
    component.output = null;
    component.cached = false;
    this.#stopAsking(event.component_id);
  }

  onComponentRetrying(event, retrying) {
    const component = this.#instance(event.component_id);
    component.tries = (retrying.try_number ?? 0) + 1;
    component.error = retrying.error ?? {};
    component.retrying = true;
  }

  onComponentFinished(event, finished) {
    const component = this.#instance(event.component_id);
    component.state = OUTCOMES[finished.outcome] ?? "error";
    component.retrying = false;
    component.error = finished.error ?? null;
    component.output = finished.output ?? null;
    component.cached = finished.cached ?? false;
    component.usage = finished.usage ?? null;
    component.finishedTime = event.time ?? "1970-01-01T00:00:00Z";
    this.#stopAsking(event.component_id);
  }

  onOutputDelta(event, delta) {
    const { parts } = this.#instance(event.component_id);
    const number = delta.part ?? 0;
    let part = parts.get(number);
    if (!part) {
      const channel = delta.channel && delta.channel !== "UNSPECIFIED" ? delta.channel : "TEXT";
      parts.set(number, (part = new Part(number, channel)));
    }
    const { pieces } = this.#trail(event.component_id);
    // An empty piece too is one: it begins its part.
    if (delta.value) {
      part.values.push(decode(delta.value));
      pieces.push([event.offset, part, part.values]);
    }
    if (delta.text || !delta.value) {
      part.texts.push(delta.text ?? "");
      pieces.push([event.offset, part, part.texts]);
    }
  }

  onStatusUpdated(event, updated) {
    this.#instance(event.component_id).statuses.push({
      offset: event.offset,
      componentId: event.component_id ?? "",
      message: updated.message ?? "",
      done: updated.done ?? null,
      total: updated.total ?? null,
      time: event.time,
    });
  }

  onPublished(event, published) {
    const name = published.name ?? "";
    if (!this.#names.has(name)) this.#names.set(name, new Publications());
    this.#names.get(name).add(event.offset, published);
    this.#trail(event.component_id).published.push([event.offset, name]);
  }

  onRollback(event, rollback) {
    for (const id of rollback.component_ids ?? []) this.#void(id, rollback.after_offset ?? 0);
  }

  onInputRequested(event, requested) {
    this.#requests.set(event.offset, {
      offset: event.offset,
      componentId: event.component_id ?? "",
      name: requested.name ?? "",
      prompt: requested.prompt ?? "",
      schema: decode(requested.schema),
      expireTime: requested.expire_time ?? null,
    });
  }

  onSignalReceived(event, received) {
    // Signals of one name go to the waits of that name in the order they began.
    for (const [offset, request] of this.#requests)
      if (request.name === (received.name ?? "")) {
        this.#requests.delete(offset);
        return;
      }
  }

  onRunWaiting(event, waiting) {
    this.state = "WAITING";
    this.waiting = {
      reason: waiting.reason ?? "",
      kinds: waiting.kinds ?? [],
      signals: waiting.signals ?? [],
      wakeTime: waiting.wake_time ?? null,
    };
  }

  onChildStarted(event, child) {
    this.childRuns.push({
      runId: child.run_id ?? "",
      workflow: child.workflow ?? "",
      componentId: event.component_id ?? "",
      detached: child.detached ?? false,
    });
  }

  #void(id, after) {
    const trail = this.#trail(id);
    while (trail.published.length && trail.published.at(-1)[0] > after) {
      const [offset, name] = trail.published.pop();
      const publications = this.#names.get(name);
      publications.drop(offset);
      if (publications.empty) this.#names.delete(name);
    }
    const component = this.instance(id);
    if (!component) return;
    while (component.statuses.length && component.statuses.at(-1).offset > after) component.statuses.pop();
    while (trail.pieces.length && trail.pieces.at(-1)[0] > after) {
      const [, part, pieces] = trail.pieces.pop();
      pieces.pop();
      part.voided++;
      if (!part.texts.length && !part.values.length) component.parts.delete(part.number);
    }
    if (component.blank && component !== this.body) {
      // Nothing is known of it but what was void.
      this.components.delete(id);
      this.shape++;
    }
  }

  /** An instance that ended, or began anew, does not wait for an answer to what it asked before. */
  #stopAsking(id = "") {
    for (const [offset, request] of this.#requests) if (request.componentId === id) this.#requests.delete(offset);
  }
}

const OUTCOMES = { OK: "ok", ERROR: "error", CANCELLED: "cancelled" };

const ON = {
  run_state_changed: "onRunStateChanged",
  attempt_started: "onAttemptStarted",
  component_started: "onComponentStarted",
  component_retrying: "onComponentRetrying",
  component_finished: "onComponentFinished",
  output_delta: "onOutputDelta",
  status_updated: "onStatusUpdated",
  published: "onPublished",
  rollback: "onRollback",
  input_requested: "onInputRequested",
  signal_received: "onSignalReceived",
  run_waiting: "onRunWaiting",
  child_started: "onChildStarted",
};
