// Who does the work.

import { ask } from "./door.js";
import { html, useEffect } from "./html.js";
import { Empty, Trouble, usePolling } from "./parts.js";
import { workflowPath } from "./place.js";
import { count } from "./wording.js";

export function ExecutorsPage() {
  const { value, problem } = usePolling((signal) => ask("/v1/executors", { signal }), 2000, []);
  useEffect(() => {
    document.title = "Executors · Onward";
  }, []);
  const executors = value?.executors ?? [];
  const [running, slots] = executors.reduce(([a, b], one) => [a + (one.running ?? 0), b + (one.slots ?? 0)], [0, 0]);
  return html`<div class="page">
    <header class="page-head"><h1>Executors</h1>${executors.length > 0 && html`<span class="hint">${count(running)} of ${count(slots)} slots in use</span>`}</header>
    <${Trouble} problem=${problem} />
    ${value && !executors.length && html`<${Empty} title="No executor is there"><p>Runs are accepted and wait. Start one: <code>onward executor FILE.py --redis URL --scheduler HOST:PORT</code></p><//>`}
    ${
      executors.length > 0 &&
      html`<div class="table-wrap" tabindex="0" role="group" aria-label="Executors"><table class="executors">
        <thead><tr><th>executor</th><th>address</th><th>deployment</th><th>load</th><th>workflows</th></tr></thead>
        <tbody>
          ${executors.map(
            (one) => html`<tr key=${one.executor_id}>
              <td><code>${one.executor_id}</code> ${one.draining && html`<span class="tag">draining</span>`}</td>
              <td><code>${one.address}</code></td>
              <td><code>${one.deployment}</code></td>
              <td><span class="load"><meter min="0" max=${one.slots || 1} value=${one.running ?? 0} aria-label="Slots in use"></meter> ${one.running ?? 0} / ${one.slots ?? 0}</span></td>
              <td>${(one.workflows ?? []).map((name) => html`<a href=${workflowPath(name)}>${name}</a> `)}</td>
            </tr>`,
          )}
        </tbody>
      </table></div>`
    }
  </div>`;
}
