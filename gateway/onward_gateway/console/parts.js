// Small things that every page shows.

import { html, useEffect, useReducer, useRef, useState } from "./html.js";
import { exactly, moment } from "./wording.js";

const LIVE = new Set(["RUNNING", "QUEUED", "CANCELLING", "WAITING"]);

/** A run's or a component's state: a mark of its own shape and the word, never colour alone. */
export function State({ state, bare = false }) {
  const word = state.toLowerCase();
  const mark = {
    succeeded: "✓",
    ok: "✓",
    failed: "✕",
    error: "✕",
    cancelled: "–",
    paused: "‖",
    waiting: "◷",
    queued: "○",
    retrying: "↻",
  }[word];
  return html`<span class="state ${word} ${LIVE.has(state) ? "live" : ""}">
    <span class="mark" aria-hidden="true">${mark ?? ""}</span><span class=${bare ? "unseen" : ""}>${word}</span>
  </span>`;
}

export function Moment({ time }) {
  if (!time) return null;
  return html`<time datetime=${time} title=${exactly(time)}>${moment(time)}</time>`;
}

export function Copy({ text, what = "Copy" }) {
  const [done, setDone] = useState(false);
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      return; // not on a secure origin; the text can be selected
    }
    setDone(true);
    timer.current = setTimeout(() => setDone(false), 1500);
  }
  return html`<button type="button" class="quiet copy" onClick=${copy} aria-label=${what} title=${what}>
    ${done ? "copied" : "copy"}
  </button>`;
}

/** A run's or a component's error. The traceback is open where there is nothing else to read. */
export function Failure({ error, open = false }) {
  if (!error) return null;
  return html`<div class="failure">
    <p class="failure-line">
      <strong>${error.type || error.reason || "Error"}</strong>${error.type && error.reason ? html` <code>${error.reason}</code>` : ""}
    </p>
    ${error.message && html`<p class="failure-message">${error.message}</p>`}
    ${
      error.traceback &&
      html`<details open=${open}>
      <summary>Traceback</summary>
      <pre tabindex="0">${error.traceback}</pre>
    </details>`
    }
  </div>`;
}

export function Trouble({ problem, children }) {
  if (!problem) return null;
  return html`<div class="trouble" role="alert">
    <p><strong>${problem.title || problem.reason || "It did not work"}</strong> ${problem.message}</p>
    ${children}
  </div>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><h2>${title}</h2><div>${children}</div></div>`;
}

/** Redraw every `ms` while `on`: for what counts up. */
export function useTick(ms, on = true) {
  const [, redraw] = useReducer((count) => count + 1, 0);
  useEffect(() => {
    if (!on) return undefined;
    const timer = setInterval(() => document.hidden || redraw(), ms);
    return () => clearInterval(timer);
  }, [ms, on]);
}

/** Ask again and again while the page is seen: `load` with an AbortSignal; one request at a time. */
export function usePolling(load, everyMs, about) {
  const [told, setTold] = useState({ value: null, problem: null });
  const again = useRef(() => {});
  useEffect(() => {
    const closing = new AbortController();
    let timer = 0;
    let busy = false;
    async function poll() {
      clearTimeout(timer);
      if (busy) return;
      busy = true;
      try {
        const value = await load(closing.signal);
        if (!closing.signal.aborted) setTold({ value, problem: null });
      } catch (problem) {
        if (!closing.signal.aborted) setTold((before) => ({ value: before.value, problem }));
      }
      busy = false;
      if (!closing.signal.aborted && !document.hidden) timer = setTimeout(poll, everyMs);
    }
    const seen = () => document.hidden || poll();
    again.current = poll;
    document.addEventListener("visibilitychange", seen);
    setTold((before) => ({ value: null, problem: before.problem }));
    poll();
    return () => {
      closing.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, about);
  return { ...told, again: () => again.current() };
}
