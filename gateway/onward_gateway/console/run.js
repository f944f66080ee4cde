// One run: what it says, what ran when, and what a person can do about it.

import { ask, onceKey, send } from "./door.js";
import { Following } from "./following.js";
import { initial, Json, placed, SchemaForm, unfinished } from "./form.js";
import { html, useEffect, useLayoutEffect, useReducer, useRef, useState } from "./html.js";
import { Copy, Empty, Failure, Moment, State, Trouble, useTick } from "./parts.js";
import { go, refine, runPath, workflowPath } from "./place.js";
import { Prose } from "./prose.js";
import { Rows } from "./rows.js";
import { nowOf, Timeline } from "./timeline.js";
import { Payload, Value } from "./values.js";
import { decode } from "./view.js";
import { brief, bytes, count, duration, moment, money } from "./wording.js";

const TABS = ["output", "component", "state", "run", "log"];
const BLOCKS = 100;

export function RunPage({ runId, query }) {
  const [following, setFollowing] = useState(null);
  const [, redraw] = useReducer((times) => times + 1, 0);
  useEffect(() => {
    const made = new Following(runId);
    setFollowing(made);
    const stop = made.subscribe(redraw);
    return () => {
      stop();
      made.close();
    };
  }, [runId]);
  const going = Boolean(following && !following.view.done && !following.problem);
  useTick(250, going);
  if (!following || following.path !== `/v1/runs/${encodeURIComponent(runId)}`) return null;
  if (following.problem && !following.view.offset)
    return html`<h1 class="unseen">Run ${runId}</h1>
      <${Empty} title=${following.problem.status === 404 ? "There is no such run" : "The run cannot be shown"}>
        <p>${following.problem.message}</p>
        <p><a href="/console/runs">All runs</a></p>
      <//>`;
  return html`<${Shown} following=${following} runId=${runId} query=${query} />`;
}

function Shown({ following, runId, query }) {
  const { view, run } = following;
  const selected = query.get("component") ?? "";
  const tab = TABS.includes(query.get("tab")) ? query.get("tab") : selected ? "component" : "output";
  const component = view.instance(selected) ?? view.body;
  const select = (id) => refine({ component: id, tab: id ? "component" : "output" });
  useEffect(() => {
    document.title = `${view.state.toLowerCase()} · ${run?.workflow ?? runId} · Onward`;
  }, [view.state, run?.workflow]);
  const panels = {
    output: () => html`<${Output} following=${following} onSelect=${select} />`,
    component: () => html`<${OneComponent} following=${following} component=${component} runId=${runId} />`,
    state: () => html`<${PublishedValues} view=${view} />`,
    run: () => html`<${Facts} following=${following} />`,
    log: () => html`<${Log} following=${following} />`,
  };
  const labels = {
    output: "Output",
    component: selected ? component.name || "Component" : "Component",
    state: "State",
    run: "Run",
    log: "Log",
  };
  return html`<div class="run-page">
    <${Head} following=${following} runId=${runId} />
    <${Asked} following=${following} />
    <div class="run-split">
      <${Timeline} following=${following} selected=${selected} onSelect=${select} />
      <section class="panel" aria-label="Details">
        <${Tabs} labels=${labels} tab=${tab} onTab=${(name) => refine({ tab: name === "output" && !selected ? "" : name })} />
        <${Scroller} following=${tab === "output" && following.live} kind=${tab} of=${selected}>${panels[tab]()}<//>
      </section>
    </div>
  </div>`;
}

function Head({ following, runId }) {
  const { view, run, history } = following;
  const usage = run?.usage;
  const status = view.status;
  const began = history.start;
  const took = began === null ? null : (view.done ? history.end : nowOf(history)) - began;
  return html`<header class="run-head">
    <div class="run-line">
      <h1><a href=${run ? workflowPath(run.workflow) : "#"}>${run?.workflow ?? "…"}</a></h1>
      <span class="run-id"><code>${runId}</code><${Copy} text=${runId} what="Copy the run's id" /></span>
      <${State} state=${view.state === "UNSPECIFIED" ? (run?.state ?? "QUEUED") : view.state} />
      <${Connection} following=${following} />
      <${Actions} following=${following} runId=${runId} />
    </div>
    <dl class="run-facts">
      <div><dt>took</dt><dd>${duration(took)}</dd></div>
      <div><dt>attempt</dt><dd>${view.attempt || "–"}</dd></div>
      <div><dt>started</dt><dd><${Moment} time=${run?.create_time} /></dd></div>
      <div><dt>components</dt><dd>${count(view.components.size)}</dd></div>
      <div><dt>events</dt><dd>${count(view.offset)}</dd></div>
      ${usage && html`<div><dt>tokens</dt><dd>${count(usage.input_tokens)} in, ${count(usage.output_tokens)} out</dd></div>`}
      ${usage?.cost_usd_micros > 0 && html`<div><dt>cost</dt><dd>${money(usage.cost_usd_micros)}</dd></div>`}
    </dl>
    ${
      !view.done && status
        ? html`<div class="status" role="status">
            <span>${status.message}</span>
            ${status.done !== null && html`<span class="status-count">${count(status.done)}${status.total !== null ? ` / ${count(status.total)}` : ""}</span>`}
            ${status.done !== null && status.total > 0 && html`<progress max=${status.total} value=${Math.min(status.done, status.total)} aria-label=${status.message}></progress>`}
          </div>`
        : null
    }
    ${view.state === "WAITING" && !view.requests.length && html`<p class="notice waiting">Waiting for ${view.waiting?.reason || run?.waiting_for || "something"}${view.waiting?.wakeTime && html`, until <${Moment} time=${view.waiting.wakeTime} /> at the latest`}.</p>`}
    ${view.state === "QUEUED" && html`<p class="notice">${run?.state === "QUEUED" && run.waiting_for ? `Queued: waits for ${run.waiting_for}.` : view.attempt ? "Queued again: the next attempt goes on from the log." : "Queued: no executor has taken it yet."}</p>`}
    ${(view.state === "PAUSED" || view.state === "FAILED") && html`<${Failure} error=${view.error ?? { reason: view.reason }}  />`}
    ${view.continuedAs && html`<p class="notice">It goes on as <a href=${runPath(view.continuedAs)}>${view.continuedAs}</a>.</p>`}
    ${view.state === "CANCELLED" && view.reason && html`<p class="notice">Cancelled: ${view.reason}</p>`}
    ${following.problem && html`<${Trouble} problem=${following.problem} />`}
  </header>`;
}

function Connection({ following }) {
  if (following.ended) return null;
  const words = { live: following.caughtUp ? "live" : "reading", away: "reconnecting", connecting: "connecting" };
  return html`<span class="connection ${following.connection}" role="status">${words[following.connection]}</span>`;
}

function Actions({ following, runId }) {
  const { view, run } = following;
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState("");
  const [sure, setSure] = useState(false);
  const key = useRef(onceKey());
  async function act(name, work) {
    setBusy(name);
    setProblem(null);
    try {
      await work();
      following.refresh();
    } catch (error) {
      setProblem(error);
    }
    setBusy("");
    setSure(false);
  }
  const path = following.path;
  const live = !view.done && view.state !== "CANCELLING";
  return html`<span class="actions">
    ${run && (view.state === "PAUSED" || isStranded(run)) && html`<${Resume} run=${run} busy=${busy} onResume=${(build) => act("resume", () => ask(`${path}/resume`, { method: "POST", body: build ? { deployment: build } : {} }))} />`}
    ${
      live &&
      (sure
        ? html`<span class="sure" role="group" aria-label="Cancel this run?"
            >Cancel it?
            <button type="button" class="danger" disabled=${busy} ref=${(node) => node?.focus()} onClick=${() => act("cancel", () => ask(`${path}/cancel`, { method: "POST", body: { reason: "cancelled in the console" } }))}>Yes, cancel</button>
            <button type="button" onClick=${() => setSure(false)}>No</button></span
          >`
        : html`<button type="button" onClick=${() => setSure(true)}>Cancel</button>`)
    }
    ${
      view.state === "SUCCEEDED" &&
      html`<button type="button" disabled=${busy} title="A new run with the same input" onClick=${() => act("fork", () => another(`${path}/fork`, {}, key))}>Run again</button>`
    }
    ${
      ["FAILED", "CANCELLED", "PAUSED"].includes(view.state) &&
      html`<button type="button" disabled=${busy} title="A new run, from where this one failed, with the results that it has" onClick=${() => act("retry", () => another(`${path}/retry`, {}, key))}>Retry</button>`
    }
    ${run && "input" in run && html`<a class="button" href="${workflowPath(run.workflow)}?from=${encodeURIComponent(runId)}">Same input</a>`}
    ${problem && html`<${Trouble} problem=${problem} />`}
  </span>`;
}

/** Whether it stands in line for a build that nobody runs. */
const isStranded = (run) => run.state === "QUEUED" && Boolean(run.waiting_for);

/** Goes on with a run, on its own build or on another one that serves its workflow. */
function Resume({ run, busy, onResume }) {
  const [builds, setBuilds] = useState([]);
  const [chosen, setChosen] = useState("");
  useEffect(() => {
    const left = new AbortController();
    ask("/v1/workflows", { signal: left.signal }).then(
      (told) => setBuilds(told.workflows.find((one) => one.name === run.workflow)?.deployments ?? []),
      () => {}, // Then it is its own build alone.
    );
    return () => left.abort();
  }, [run.run_id, run.state]);
  const others = builds.filter((build) => build !== run.deployment);
  const build = isStranded(run) ? chosen || others[0] : chosen;
  if (isStranded(run) && !build) return null;
  return html`<span class="resume">
    <button type="button" class="main" disabled=${busy} onClick=${() => onResume(build)}>${isStranded(run) ? "Move" : "Resume"}</button>
    ${
      others.length > 0 &&
      html`<label class="unseen" for="build">On the build</label>
        <select id="build" value=${build} onChange=${(event) => setChosen(event.target.value)}>
          ${!isStranded(run) && html`<option value="">on ${run.deployment}</option>`}
          ${others.map((other) => html`<option value=${other} key=${other}>on ${other}</option>`)}
        </select>`
    }
  </span>`;
}

/** Start a run that is made from this one, once, and go to its page. */
async function another(path, body, key) {
  const made = await send(path, body, { key: key.current });
  key.current = onceKey();
  go(runPath(made.run_id));
}

function Tabs({ labels, tab, onTab }) {
  const list = useRef(null);
  function key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length];
    onTab(next);
    list.current.querySelector(`#tab-${next}`)?.focus();
    event.preventDefault();
  }
  return html`<div class="tabs" role="tablist" ref=${list} onKeyDown=${key}>
    ${TABS.map(
      (name) =>
        html`<button type="button" role="tab" id="tab-${name}" aria-selected=${tab === name} aria-controls="tab-panel" tabindex=${tab === name ? 0 : -1} onClick=${() => onTab(name)}>${labels[name]}</button>`,
    )}
  </div>`;
}

// Keeps the end of a live output in sight for who is there, and leaves alone who scrolled away.
function Scroller({ following, kind, of, children }) {
  const box = useRef(null);
  const atEnd = useRef(true);
  useLayoutEffect(() => {
    atEnd.current = following;
    if (!following) box.current.scrollTop = 0;
  }, [kind, of]);
  useLayoutEffect(() => {
    if (following && atEnd.current) box.current.scrollTop = box.current.scrollHeight;
  });
  function scrolled() {
    const node = box.current;
    atEnd.current = node.scrollTop + node.clientHeight >= node.scrollHeight - 40;
  }
  return html`<div class="panel-body ${kind}" id="tab-panel" role="tabpanel" aria-labelledby="tab-${kind}" tabindex="0" ref=${box} onScroll=${scrolled}>${children}</div>`;
}

/** What the run gives: the texts and items of all who speak, in the order they began, then its result. */
function Output({ following, onSelect }) {
  const { view } = following;
  const [earlier, setEarlier] = useState(false);
  const speakers = [...view.components.values()].filter((component) => component.parts.size);
  const shown = earlier ? speakers : speakers.slice(-BLOCKS);
  const nothing = !speakers.length && !view.body.parts.size && !view.output;
  return html`${
    shown.length < speakers.length &&
    html`<p><button type="button" class="quiet" onClick=${() => setEarlier(true)}>${count(speakers.length - shown.length)} earlier ones</button></p>`
  }
    ${shown.map(
      (component) =>
        html`<article class="speaker" key=${component.id}>
          <h2><button type="button" class="link" onClick=${() => onSelect(component.id)}>${component.name || component.id}</button> <span class="hint">${brief(decode(component.input))}</span> <${State} state=${component.retrying ? "retrying" : component.state} bare /></h2>
          <${Parts} component=${component} going=${component.state === "running" && !component.retrying} />
        </article>`,
    )}
    ${view.body.parts.size > 0 && html`<article class="speaker own" key="body"><${Parts} component=${view.body} going=${!view.done} /></article>`}
    ${view.output && html`<article class="result"><${Payload} payload=${view.output} label="Result" /></article>`}
    ${nothing && html`<p class="hint">${view.continuedAs ? "What it gives comes from the run that it goes on as." : view.done ? "It gave no output." : "Nothing has been said yet."}</p>`}`;
}

function Parts({ component, going }) {
  const parts = component.ordered;
  return parts.map((part, index) => {
    const last = going && index === parts.length - 1;
    if (part.channel === "REASONING")
      return html`<details class="reasoning" open key=${part.number}><summary>Reasoning</summary><${Prose} part=${part} /></details>`;
    return html`<div class="part ${part.channel.toLowerCase()} ${last ? "growing" : ""}" key=${part.number}>
      ${part.texts.length > 0 && html`<${Prose} part=${part} />`}
      ${part.values.length > 0 && html`<${Value} value=${part.values} label=${part.channel === "TOOL" ? "Tools" : "Items"} />`}
    </div>`;
  });
}

function OneComponent({ following, component, runId }) {
  const { view, history } = following;
  const [problem, setProblem] = useState(null);
  const key = useRef(onceKey());
  if (component === view.body)
    return html`<p class="hint">Choose a component in the timeline. The run itself has its output, its state and its facts in the other tabs.</p>
      <${Statuses} component=${component} />`;
  const spans = history.spans.get(component.id) ?? [];
  const tries = history.tries.get(component.id) ?? [];
  const parent = view.instance(component.parentId);
  const children = view.childRuns.filter((child) => child.componentId === component.id);
  const end = component.finishedTime ? Date.parse(component.finishedTime) : null;
  const began = spans[0]?.start ?? (component.startedTime ? Date.parse(component.startedTime) : null);
  return html`<div class="component">
    <dl class="facts">
      <div><dt>state</dt><dd><${State} state=${component.retrying ? "retrying" : component.state} /></dd></div>
      <div><dt>took</dt><dd>${began === null ? "" : duration((end ?? nowOf(history)) - began)}</dd></div>
      <div><dt>began</dt><dd><${Moment} time=${component.startedTime} /></dd></div>
      <div><dt>tries</dt><dd>${component.tries}</dd></div>
      ${component.dueTime && html`<div><dt>due</dt><dd><${Moment} time=${component.dueTime} /></dd></div>`}
      <div><dt>called by</dt><dd>${parent && parent !== view.body ? html`<button type="button" class="link" onClick=${() => refine({ component: parent.id, tab: "component" })}>${parent.name}</button>` : "the workflow"}</dd></div>
      <div><dt>id</dt><dd><code>${component.id}</code></dd></div>
      ${component.usage && html`<div><dt>tokens</dt><dd>${count(component.usage.input_tokens)} in, ${count(component.usage.output_tokens)} out ${money(component.usage.cost_usd_micros)}</dd></div>`}
    </dl>
    <${Failure} error=${component.error} open=${component.state === "error"} />
    ${tries.length > 0 && html`<${Tries} tries=${tries} history=${history} id=${component.id} />`}
    ${spans.some((span) => span.outcome === "lost") && html`<p class="notice">An attempt was lost while it ran: it began anew in the next one.</p>`}
    ${children.map((child) => html`<p>Child run <a href=${runPath(child.runId)}>${child.workflow} ${child.runId}</a></p>`)}
    <${Payload} payload=${component.input} label="Input" />
    ${component.parts.size > 0 && html`<div class="framed"><div class="framed-head"><h2>Said</h2></div><${Parts} component=${component} going=${component.state === "running"} /></div>`}
    <${Payload} payload=${component.output} label="Output" />
    <${Statuses} component=${component} />
    ${
      (view.done || view.state === "PAUSED") &&
      html`<p><button type="button" onClick=${() => another(`${following.path}/fork`, { component_id: component.id }, key).catch(setProblem)}>Run again from here</button> <span class="hint">A new run with all results before this one.</span></p>
        <${Trouble} problem=${problem} />`
    }
  </div>`;
}

function Tries({ tries, history, id }) {
  return html`<div class="framed">
    <div class="framed-head"><h2>Failed tries</h2></div>
    <ol class="tries">
      ${tries.map((one) => {
        const said = history.voided(id, one.after, one.offset);
        return html`<li key=${one.offset}>
          <p><strong>Try ${one.number}</strong> <span class="hint">attempt ${one.attempt}${one.start !== null ? `, after ${duration(one.end - one.start)}` : ""}${one.delayS ? `, next one ${duration(one.delayS * 1000)} later` : ""}</span></p>
          <${Failure} error=${one.error} />
          ${said && html`<details><summary>What it had said (rolled back)</summary><div class="prose void-text"><div>${said}</div></div></details>`}
        </li>`;
      })}
    </ol>
  </div>`;
}

function Statuses({ component }) {
  if (!component.statuses.length) return null;
  return html`<div class="framed">
    <div class="framed-head"><h2>Progress</h2></div>
    <ul class="statuses">
      ${component.statuses.slice(-200).map((status) => html`<li key=${status.offset}><time>${moment(status.time)}</time> ${status.message} ${status.done !== null && html`<span class="hint">${count(status.done)}${status.total !== null ? ` / ${count(status.total)}` : ""}</span>`}</li>`)}
    </ul>
  </div>`;
}

function PublishedValues({ view }) {
  const states = [...view.states];
  const events = [...view.events];
  if (!states.length && !events.length)
    return html`<p class="hint">The workflow has published nothing${view.done ? "" : " yet"}.</p>`;
  return html`${states.map(([name, value]) => html`<${Value} key="s-${name}" value=${value} label=${name} />`)}
  ${events.map(([name, values]) => html`<${Value} key="e-${name}" value=${values.slice(-200)} label="${name} (${count(values.length)} events)" />`)}`;
}

function Facts({ following }) {
  const { run, view, history } = following;
  if (!run) return null;
  const facts = [
    ["run", html`<code>${run.run_id}</code>`],
    ["namespace", run.namespace],
    ["deployment", html`<code>${view.deployment || run.deployment}</code>`],
    ["executor", run.executor_id && html`<code>${run.executor_id}</code>`],
    ["accepted", html`<${Moment} time=${run.create_time} />`],
    ["first taken", run.start_time && html`<${Moment} time=${run.start_time} />`],
    ["ended", run.end_time && html`<${Moment} time=${run.end_time} />`],
    ["kept until", run.expire_time && html`<${Moment} time=${run.expire_time} />`],
    ["scheduled for", run.schedule_time && html`<${Moment} time=${run.schedule_time} />`],
    ["must end by", run.deadline && html`<${Moment} time=${run.deadline} />`],
    ["wakes by", run.wake_time && html`<${Moment} time=${run.wake_time} />`],
    ["priority", run.priority || null],
    ["fairness key", run.fairness_key],
    ["parent", run.parent_run_id && html`<a href=${runPath(run.parent_run_id)}>${run.parent_run_id}</a>`],
    [
      "forked from",
      run.forked_from_run_id && html`<a href=${runPath(run.forked_from_run_id)}>${run.forked_from_run_id}</a>`,
    ],
    ["labels", Object.keys(run.labels ?? {}).length > 0 && html`<${Labels} labels=${run.labels} />`],
    ["goes on as", view.continuedAs && html`<a href=${runPath(view.continuedAs)}>${view.continuedAs}</a>`],
    ["goes on from", run.continued_from_run_id && html`<a href=${runPath(run.continued_from_run_id)}>${run.continued_from_run_id}</a>`],
    ["log", `${count(view.offset)} events`],
  ].filter(([, value]) => value);
  const usage = run.usage;
  const apart = run.input_blob;
  const input = "input" in run ? { value: run.input } : apart && (apart.url ? { ...apart, blob: apart.url } : apart);
  return html`<${Payload} payload=${input} label="Input" />
    <div class="framed">
      <div class="framed-head"><h2>Attempts</h2></div>
      <div class="table-wrap"><table>
        <thead><tr><th>no.</th><th>why</th><th>executor</th><th>began</th><th>lasted</th><th>ended</th></tr></thead>
        <tbody>${history.attempts.map((attempt) => html`<tr key=${attempt.number}><td>${attempt.number}</td><td>${attempt.cause.toLowerCase().replaceAll("_", " ")}</td><td><code>${attempt.executorId}</code></td><td>${moment(attempt.start)}</td><td>${duration((attempt.end ?? nowOf(history)) - attempt.start)}</td><td>${attempt.ended || "goes on"}</td></tr>`)}</tbody>
      </table></div>
    </div>
    ${
      history.rollbacks.length > 0 &&
      html`<div class="framed">
      <div class="framed-head"><h2>Rollbacks</h2></div>
      <ul class="statuses">${history.rollbacks.slice(-100).map(
        (one) =>
          html`<li key=${one.offset}><time>${moment(one.time)}</time> ${one.cause.toLowerCase().replaceAll("_", " ")}: ${one.ids
            .slice(0, 8)
            .map((id) => view.instance(id)?.name || (id ? id : "the workflow"))
            .join(
              ", ",
            )}${one.ids.length > 8 ? ` and ${one.ids.length - 8} more` : ""} ${one.after > 0 && html`<span class="hint">back to event ${one.after}</span>`}</li>`,
      )}</ul>
    </div>`
    }
    ${
      usage &&
      html`<div class="framed"><div class="framed-head"><h2>Usage</h2></div><dl class="facts">
      <div><dt>calls</dt><dd>${count(usage.calls)}</dd></div>
      <div><dt>input tokens</dt><dd>${count(usage.input_tokens)}${usage.cached_input_tokens ? ` (${count(usage.cached_input_tokens)} cached)` : ""}</dd></div>
      <div><dt>output tokens</dt><dd>${count(usage.output_tokens)}</dd></div>
      <div><dt>cost</dt><dd>${money(usage.cost_usd_micros) || "unknown"}</dd></div></dl></div>`
    }
    <div class="framed"><div class="framed-head"><h2>Facts</h2></div>
      <dl class="facts">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></div>
    ${view.childRuns.length > 0 && html`<div class="framed"><div class="framed-head"><h2>Child runs</h2></div><ul>${view.childRuns.map((child) => html`<li><a href=${runPath(child.runId)}>${child.workflow} ${child.runId}</a>${child.detached ? " detached" : ""}</li>`)}</ul></div>`}`;
}

export function Labels({ labels }) {
  return Object.entries(labels ?? {}).map(
    ([name, value]) => html`<span class="label" key=${name}>${name}<i>:</i>${value}</span> `,
  );
}

function Log({ following }) {
  const { events } = following.history;
  const { view } = following;
  const [active, setActive] = useState(-1);
  const [kind, setKind] = useState("");
  const shown = kind ? events.filter((event) => event.kind === kind) : events;
  const kinds = [...new Set(events.map((event) => event.kind))];
  const event = shown[active];
  return html`<div class="log">
    <p class="log-tools">
      <label for="log-kind">show</label>
      <select id="log-kind" value=${kind} onChange=${(changed) => (setKind(changed.target.value), setActive(-1))}>
        <option value="">all events</option>
        ${kinds.map((one) => html`<option value=${one}>${one?.replaceAll("_", " ")}</option>`)}
      </select>
      <span class="hint">${count(shown.length)}${events.length < view.offset ? ` of ${count(view.offset)}: the newest are kept` : ""}</span>
    </p>
    <${Rows} role="grid" id="event" label="Events" items=${shown} height=${24} active=${active} onActive=${setActive} follow=${!view.done}
      keyOf=${(one) => one.offset}
      attributes=${(_, index) => ({ "aria-selected": index === active ? "true" : "false" })}
      row=${(one) => html`<span role="gridcell" class="log-offset">${one.offset}</span><span role="gridcell" class="log-kind">${one.kind?.replaceAll("_", " ") ?? "unknown"}</span><span role="gridcell" class="log-what">${view.instance(one.component_id ?? "")?.name || one.component_id || ""} <span class="hint">${line(one)}</span></span>`}
    />
    ${event && html`<div class="log-one"><${Value} value=${event} label="Event ${event.offset}" /></div>`}
  </div>`;
}

function line(event) {
  const what = event[event.kind] ?? {};
  return (
    what.text ??
    what.message ??
    what.reason ??
    what.error?.message ??
    [what.state, what.outcome, what.cause, what.name, what.executor_id, what.prompt].filter(Boolean).join(" ")
  ).slice(0, 200);
}

/** What the run asks, each with its form. */
function Asked({ following }) {
  const { view } = following;
  const requests = view.requests;
  const named = new Set(requests.map((request) => request.name));
  const others = (view.waiting?.signals ?? []).filter((name) => !named.has(name));
  return html`${requests.map((request) => html`<${Question} key=${request.offset} following=${following} request=${request} />`)}
  ${others.map((name) => html`<${Question} key="${name}-${view.attempt}" following=${following} request=${{ name, prompt: "", schema: null, expireTime: null }} />`)}`;
}

function Question({ following, request }) {
  const schema = request.schema && typeof request.schema === "object" ? request.schema : null;
  const [value, setValue] = useState(() => (schema ? initial(schema) : null));
  const [asJson, setAsJson] = useState(false);
  const [state, setState] = useState({});
  const key = useRef(onceKey());
  async function answer(event) {
    event.preventDefault();
    setState({ busy: true });
    try {
      await send(`${following.path}/signals/${encodeURIComponent(request.name)}`, value ?? null, { key: key.current });
      setState({ sent: true });
    } catch (problem) {
      setState({ problem });
      key.current = onceKey();
    }
  }
  if (state.sent)
    return html`<p class="notice" role="status">Answered. The run goes on as soon as an executor takes it.</p>`;
  const yesNo = schema?.type === "boolean";
  return html`<form class="question" onSubmit=${answer} aria-label="Answer ${request.name}">
    <p class="question-prompt">${request.prompt || html`It waits for the signal <code>${request.name}</code>.`}</p>
    ${
      schema
        ? html`<${SchemaForm} schema=${schema} value=${value} onChange=${setValue} name=${request.name} problems=${placed(state.problem?.violations ?? [])} asJson=${asJson} onAsJson=${yesNo ? null : setAsJson} />`
        : html`<${Json} id="signal-${request.name}" label=${request.name} value=${value} onChange=${setValue} />`
    }
    <div class="question-foot">
      <button class="main" disabled=${state.busy || unfinished(value)}>Send</button>
      <code>${request.name}</code>
      ${request.expireTime && html`<span class="hint">until <${Moment} time=${request.expireTime} /></span>`}
    </div>
    <${Trouble} problem=${state.problem} />
  </form>`;
}
