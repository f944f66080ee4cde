// The tree of instances beside what ran when: one row an instance, one bar a start of it.

import { html, useEffect, useMemo, useState } from "./html.js";
import { State } from "./parts.js";
import { Rows } from "./rows.js";
import { decode } from "./view.js";
import { brief, duration } from "./wording.js";

const ROW = 28;

export function Timeline({ following, selected, onSelect }) {
  const { view, history, run } = following;
  const [folded, setFolded] = useState(() => new Set());
  const rows = useMemo(() => flat(view, folded), [view, view.shape, folded]);
  const active = rows.findIndex((row) => row.id === selected);
  const start = history.start ?? Date.now();
  const end = view.done ? Math.max(history.end ?? start, start + 1) : Math.max(nowOf(history), start + 1000);
  const scale = (time) => (100 * (time - start)) / (end - start);

  // A link may name an instance below a folded one.
  useEffect(() => {
    if (selected && active < 0 && view.instance(selected)) setFolded(new Set());
  }, [selected]);

  function fold(id, closed) {
    const next = new Set(folded);
    if (closed) next.add(id);
    else next.delete(id);
    setFolded(next);
  }

  function key(event, index) {
    const row = rows[index];
    if (!row) return false;
    if (event.key === "ArrowRight" && row.inner) {
      if (folded.has(row.id)) fold(row.id, false);
      else onSelect(rows[index + 1].id);
    } else if (event.key === "ArrowLeft") {
      if (row.inner && !folded.has(row.id) && row.id) fold(row.id, true);
      else if (row.id) onSelect(row.parentId);
    } else return false;
    return true;
  }

  const marks = history.attempts.slice(1, 200);
  const lines = html`<span class="lines" aria-hidden="true">
    ${marks.map((attempt) => html`<i class="cut" style=${{ left: `${scale(attempt.start)}%` }}></i>`)}
  </span>`;
  return html`<section class="timeline" aria-label="Timeline">
    <${Rows}
      role="treegrid"
      id="row"
      label="Components and when they ran"
      items=${rows}
      height=${ROW}
      active=${active}
      keyOf=${(row) => row.id}
      onActive=${(index) => rows[index] && onSelect(rows[index].id)}
      onKey=${key}
      header=${html`<span role="columnheader" class="tree-cell">component</span
        ><span role="columnheader" class="bars-cell">${ticks(end - start).map(
          ({ at, label }) => html`<i class="tick" style=${{ left: `${at}%` }}>${label}</i>`,
        )}<span class="unseen">when it ran</span></span
        ><span role="columnheader" class="took-cell">took</span>`}
      attributes=${(row) => ({
        "aria-level": row.level + 1,
        "aria-selected": row.id === selected ? "true" : "false",
        "aria-expanded": row.inner ? (folded.has(row.id) ? "false" : "true") : undefined,
      })}
      row=${(row) => {
        const component = view.instance(row.id);
        return component && cells({ row, component, following, folded, fold, scale, end, lines, run });
      }}
    />
  </section>`;
}

function cells({ row, component, following, folded, fold, scale, end, lines, run }) {
  const { view, history } = following;
  const body = !row.id;
  const spans = body ? attemptsAsSpans(history, view) : (history.spans.get(row.id) ?? []);
  const waits = view.state === "WAITING" && component.state === "running";
  const state = body ? view.state.toLowerCase() : component.retrying ? "retrying" : waits ? "waiting" : component.state;
  const voided = body ? [] : (history.tries.get(row.id) ?? []);
  const told = (body ? !view.done : component.state === "running") ? component.status?.message : "";
  const first = body ? history.start : spans[0]?.start;
  const last = body ? { end: view.done ? history.end : null } : spans.at(-1);
  return html`<span role="gridcell" class="tree-cell" style=${{ paddingLeft: `${8 + 14 * Math.min(row.level, 12)}px` }}>
      ${
        row.inner
          ? html`<button type="button" class="fold" tabindex="-1" aria-label=${folded.has(row.id) ? "Unfold" : "Fold"} onClick=${(
              event,
            ) => {
              event.stopPropagation();
              fold(row.id, !folded.has(row.id));
            }}>${folded.has(row.id) ? "▸" : "▾"}</button>`
          : html`<span class="fold"></span>`
      }
      <${State} state=${state} bare />
      <span class="tree-name">${body ? (run?.workflow ?? "run") : component.name || row.id}</span>
      ${component.tries > 1 && html`<span class="tag">try ${component.tries}</span>`}
      ${component.cached && html`<span class="tag">cached</span>`}
      <span class="tree-brief">${told || (body ? "" : brief(decode(component.input)))}</span>
    </span>
    <span role="gridcell" class="bars-cell">
      ${lines}
      ${spans.slice(-400).map((span) => {
        const left = Math.min(scale(span.start), 100);
        const right = Math.max(left, scale(span.end ?? end));
        const label = `${span.outcome}, ${duration(Math.max(0, (span.end ?? end) - span.start))}, attempt ${span.attempt}`;
        return html`<i class="bar ${span.end === null && waits ? "waiting" : span.outcome.replace(" ", "-")} ${body ? "of-run" : ""}" title=${label} style=${{ left: `${left}%`, width: `${Math.max(right - left, 0.15)}%` }}></i>`;
      })}
      ${voided.slice(-100).map((one) => html`<i class="void" title="try ${one.number} failed: ${one.error.message ?? one.error.reason ?? ""}" style=${{ left: `${scale(one.end)}%` }}></i>`)}
      <span class="unseen">${spans
        .map((span) => `${span.outcome} in attempt ${span.attempt}`)
        .slice(-5)
        .join(", ")}</span>
    </span>
    <span role="gridcell" class="took-cell">${first === undefined || first === null ? "" : duration((last.end ?? end) - first)}</span>`;
}

// The run's own bars are its attempts.
function attemptsAsSpans(history, view) {
  return history.attempts.map((attempt) => ({
    start: attempt.start,
    end: attempt.end,
    attempt: attempt.number,
    outcome:
      attempt.end === null
        ? "running"
        : ({
            lost: "lost",
            "handed over": "handed over",
            parked: "parked",
            succeeded: "ok",
            failed: "error",
            cancelled: "cancelled",
          }[attempt.ended] ?? (view.state === "PAUSED" ? "error" : "lost")),
  }));
}

/** All rows in the order of the tree. Without recursion: a tree may be deep. */
function flat(view, folded) {
  const rows = [];
  const todo = [{ id: "", parentId: "", level: 0 }];
  const seen = new Set();
  while (todo.length) {
    const row = todo.pop();
    seen.add(row.id);
    const inner = view.children(row.id);
    rows.push({ ...row, inner: inner.length > 0 });
    if (folded.has(row.id)) {
      for (const skip = [...inner]; skip.length;) {
        const one = skip.pop();
        seen.add(one.id);
        skip.push(...view.children(one.id));
      }
      continue;
    }
    for (let at = inner.length - 1; at >= 0; at--)
      todo.push({ id: inner[at].id, parentId: row.id, level: row.level + 1 });
  }
  // Who spoke before its start was read, or whose caller is unknown.
  for (const id of view.components.keys()) if (!seen.has(id)) rows.push({ id, parentId: "", level: 1, inner: false });
  return rows;
}

/** The time at the log's end: this clock, but never before what the log says. */
export function nowOf(history) {
  return Math.max(Date.now(), history.end ?? 0);
}

function ticks(span) {
  const steps = [1, 2, 5].flatMap((digit) => [digit, digit * 10, digit * 100, digit * 1000]).sort((a, b) => a - b); // ms below 10 s
  const longer = [10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800].map(
    (s) => s * 1000,
  );
  const step = [...steps, ...longer].find((one) => span / one <= 5) ?? span / 4;
  return Array.from({ length: Math.floor(span / step) + 1 }, (_, index) => ({
    at: (100 * index * step) / span,
    label: index ? duration(index * step).replace(/\.0 s$| 00 [sm]$/, (end) => (end[0] === "." ? " s" : "")) : "0",
  })).filter(({ at }) => at < 88);
}
