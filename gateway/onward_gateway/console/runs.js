// All runs, newest first, live: the list is read again from its top to as far as it was scrolled.

import { ask } from "./door.js";
import { html, useEffect, useState } from "./html.js";
import { Empty, Moment, State, Trouble, usePolling, useTick } from "./parts.js";
import { go, refine, runPath } from "./place.js";
import { Rows } from "./rows.js";
import { Labels } from "./run.js";
import { TERMINAL } from "./view.js";
import { count, duration } from "./wording.js";

const STATES = ["QUEUED", "RUNNING", "WAITING", "CANCELLING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED"];
const PAGE = 100;
/** What is read again every time; what was scrolled to below stays as it was read. */
const LIVE_MAX = 1000;
const EVERY_MS = 2000;

export function RunsPage({ query }) {
  const filter = {
    workflow: query.get("workflow") ?? "",
    states: query.getAll("state"),
    labels: query.getAll("label"),
  };
  const about = JSON.stringify(filter);
  const [wanted, setWanted] = useState(PAGE);
  const [below, setBelow] = useState([]);
  const [active, setActive] = useState(-1);
  const [more, setMore] = useState(false);
  useEffect(() => {
    document.title = "Runs · Onward";
  }, []);
  useEffect(() => {
    setWanted(PAGE);
    setBelow([]);
    setActive(-1);
  }, [about]);
  const top = usePolling((signal) => read(filter, wanted, signal), EVERY_MS, [about, wanted]);
  const workflows = usePolling((signal) => ask("/v1/workflows", { signal }), 30_000, []);
  useTick(1000);

  const [last, setLast] = useState(null);
  useEffect(() => {
    if (top.value) setLast({ about, ...top.value });
  }, [top.value]);
  const kept = last?.about === about ? last : null;
  const runs = kept ? [...kept.runs, ...below.flatMap((page) => page.runs)] : [];
  const next = below.length ? below.at(-1).next : kept?.next;

  async function end() {
    if (!kept || !next || more) return;
    if (wanted < LIVE_MAX && !below.length) {
      setWanted(Math.min(LIVE_MAX, wanted + 2 * PAGE));
      return;
    }
    setMore(true);
    try {
      const page = await read(filter, PAGE * 2, undefined, next);
      setBelow((before) => [...before, page]);
    } catch {
      // The poll shows what is wrong.
    }
    setMore(false);
  }

  const names = (workflows.value?.workflows ?? []).map((workflow) => workflow.name);
  if (filter.workflow && !names.includes(filter.workflow)) names.push(filter.workflow);
  const filtered = filter.workflow || filter.states.length || filter.labels.length;
  return html`<div class="page runs-page">
    <header class="page-head">
      <h1>Runs</h1>
      <form class="filters" onSubmit=${(event) => event.preventDefault()} aria-label="Filter">
        <label class="unseen" for="filter-workflow">Workflow</label>
        <select id="filter-workflow" value=${filter.workflow} onChange=${(event) => refine({ workflow: event.target.value })}>
          <option value="">all workflows</option>
          ${names.map((name) => html`<option value=${name}>${name}</option>`)}
        </select>
        <label class="unseen" for="filter-state">State</label>
        <select id="filter-state" value=${filter.states[0] ?? ""} onChange=${(event) => refine({ state: event.target.value })}>
          <option value="">any state</option>
          ${STATES.map((state) => html`<option value=${state}>${state.toLowerCase()}</option>`)}
        </select>
        <${LabelFilter} labels=${filter.labels} />
      </form>
      <a class="button main" href="/console/workflows">Start a run</a>
    </header>
    <${Trouble} problem=${top.problem} />
    ${
      kept && !runs.length
        ? filtered
          ? html`<${Empty} title="No run fits"><p><a href="/console/runs">Show all runs</a></p><//>`
          : html`<${Empty} title="No runs yet"><p>Start one from a <a href="/console/workflows">workflow's form</a>, with <code>onward start</code>, or over HTTP.</p><//>`
        : html`<${Rows}
            role="grid"
            id="run"
            label="Runs"
            items=${runs}
            height=${36}
            active=${active}
            onActive=${(index, clicked) => (setActive(index), clicked && go(runPath(runs[index].run_id)))}
            onOpen=${(index) => go(runPath(runs[index].run_id))}
            onEnd=${end}
            keyOf=${(run) => run.run_id}
            header=${html`<span role="columnheader" class="c-state">state</span><span role="columnheader" class="c-workflow">workflow</span><span role="columnheader" class="c-id">run</span><span role="columnheader" class="c-labels">labels</span><span role="columnheader" class="c-took">took</span><span role="columnheader" class="c-when">accepted</span>`}
            row=${row}
          />`
    }
    <p class="foot" role="status">${kept ? `${count(runs.length)}${next ? "+" : ""} ${runs.length === 1 ? "run" : "runs"}` : top.problem ? "" : "reading…"}${kept && top.problem ? ", not up to date" : ""}</p>
  </div>`;
}

function row(run) {
  const end = run.end_time ? Date.parse(run.end_time) : TERMINAL.has(run.state) ? NaN : Date.now();
  return html`<span role="gridcell" class="c-state"><${State} state=${run.state} /></span>
    <span role="gridcell" class="c-workflow"><a tabindex="-1" href=${runPath(run.run_id)}>${run.workflow}</a></span>
    <span role="gridcell" class="c-id"><code>${run.run_id}</code>${run.attempt > 1 && html` <span class="tag">attempt ${run.attempt}</span>`}</span>
    <span role="gridcell" class="c-labels"><${Labels} labels=${run.labels} />${run.error && html`<span class="bad">${run.error.message || run.error.reason}</span>`}${run.waiting_for && html`<span class="hint">${run.waiting_for}</span>`}</span>
    <span role="gridcell" class="c-took">${duration(end - Date.parse(run.create_time))}</span>
    <span role="gridcell" class="c-when"><${Moment} time=${run.create_time} /></span>`;
}

function LabelFilter({ labels }) {
  const [text, setText] = useState("");
  function add(event) {
    if (event.key !== "Enter" || !text.includes(":")) return;
    refine({ label: [...labels, text.trim()] });
    setText("");
    event.preventDefault();
  }
  return html`<label class="unseen" for="filter-label">Label</label>
    <input id="filter-label" placeholder="label: value" title="name:value, then Enter" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${add} />
    ${labels.map((label) => html`<button type="button" class="label" aria-label="Remove the filter ${label}" onClick=${() => refine({ label: labels.filter((one) => one !== label) })}>${label} ✕</button>`)}`;
}

/** Read `wanted` runs. A page may hold fewer than asked for before the end. */
async function read({ workflow, states, labels }, wanted, signal, token = "") {
  const runs = [];
  for (;;) {
    const query = new URLSearchParams({ page_size: String(Math.min(1000, wanted - runs.length)) });
    if (workflow) query.set("workflow", workflow);
    for (const state of states) query.append("state", state);
    for (const label of labels) query.append("label", label.replace(/\s*:\s*/, ":"));
    if (token) query.set("page_token", token);
    const page = await ask(`/v1/runs?${query}`, { signal });
    runs.push(...(page.runs ?? []));
    token = page.next_page_token ?? "";
    if (!token || runs.length >= wanted) return { runs, next: token };
  }
}
