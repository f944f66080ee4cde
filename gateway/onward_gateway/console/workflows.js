// What can be started: each workflow with its form, and how to start it from elsewhere.

import { ask, onceKey, send } from "./door.js";
import { initial, placed, SchemaForm, unfinished } from "./form.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Copy, Empty, Trouble, usePolling } from "./parts.js";
import { go, runPath, workflowPath } from "./place.js";
import { Value } from "./values.js";
import { duration } from "./wording.js";

export function WorkflowsPage({ name, query }) {
  const { value, problem } = usePolling((signal) => ask("/v1/workflows", { signal }), 5000, []);
  useEffect(() => {
    document.title = `${name ?? "Workflows"} · Onward`;
  }, [name]);
  if (!value) return html`<div class="page"><${Trouble} problem=${problem} /></div>`;
  const workflows = value.workflows ?? [];
  const workflow = workflows.find((one) => one.name === name);
  return html`<div class="page workflows-page">
    <nav class="side" aria-label="Workflows">
      <h1>Workflows</h1>
      <${Trouble} problem=${problem} />
      <ul>
        ${workflows.map((one) => html`<li key=${one.name}><a href=${workflowPath(one.name)} aria-current=${one.name === name ? "page" : undefined}>${one.name}<span>${one.description}</span></a></li>`)}
      </ul>
    </nav>
    ${
      !workflows.length
        ? html`<${Empty} title="No workflows yet"><p>An executor makes its workflows known when it starts: <code>onward dev FILE.py</code>.</p><//>`
        : workflow
          ? html`<${One} key=${name} workflow=${workflow} from=${query.get("from")} />`
          : html`<${Empty} title=${name ? `Nothing serves ${name}` : "Choose a workflow"}><p>${name ? "No deployment that takes runs has a workflow of this name." : "Its form starts a run."}</p><//>`
    }
  </div>`;
}

function One({ workflow, from }) {
  const schema = workflow.input_schema ?? {};
  const [value, setValue] = useState(() => initial(schema) ?? {});
  const [asJson, setAsJson] = useState(false);
  const [state, setState] = useState({});
  const key = useRef(onceKey());
  // "Same input" of a run leads here.
  useEffect(() => {
    if (!from) return;
    ask(`/v1/runs/${encodeURIComponent(from)}`).then(
      (run) => run.input !== undefined && setValue(run.input),
      (problem) => setState({ problem }),
    );
  }, [from]);

  function change(next) {
    setValue(next);
    key.current = onceKey(); // another input is another run
  }
  async function start(event) {
    event.preventDefault();
    if (state.busy) return;
    setState({ busy: true });
    try {
      const run = await send(`/v1/workflows/${encodeURIComponent(workflow.name)}/runs`, value, { key: key.current });
      go(runPath(run.run_id));
    } catch (problem) {
      setState({ problem });
      requestAnimationFrame(() => document.querySelector("[aria-invalid=true]")?.focus());
    }
  }
  const problems = placed(state.problem?.violations ?? []);
  return html`<div class="workflow">
    <header class="page-head">
      <h2>${workflow.name}</h2>
      <a href="/console/runs?workflow=${encodeURIComponent(workflow.name)}">its runs</a>
    </header>
    ${workflow.description && html`<p class="lead">${workflow.description}</p>`}
    <div class="workflow-split">
      <form class="start" onSubmit=${start} aria-label="Start ${workflow.name}">
        <${SchemaForm} schema=${schema} value=${value} onChange=${change} problems=${problems} name="input" asJson=${asJson} onAsJson=${setAsJson} />
        <button class="main" disabled=${state.busy || unfinished(value)}>${state.busy ? "Starting…" : "Start"}</button>
        ${state.problem && html`<${Trouble} problem=${state.problem} />`}
      </form>
      <div>
        <${Snippets} workflow=${workflow} value=${unfinished(value) ? {} : value} />
        <details class="schemas">
          <summary>Schemas and deployments</summary>
          <dl class="facts">
            <div><dt>deployments</dt><dd>${(workflow.deployments ?? []).map((one) => html`<code>${one}</code> `)}</dd></div>
            ${workflow.run_timeout_s && html`<div><dt>run timeout</dt><dd>${duration(workflow.run_timeout_s * 1000)}</dd></div>`}
          </dl>
          <${Value} value=${schema} label="Input schema" />
          ${workflow.output_schema && html`<${Value} value=${workflow.output_schema} label="Output schema" />`}
        </details>
      </div>
    </div>
  </div>`;
}

const LANGUAGES = ["curl", "Python", "gRPC"];

function Snippets({ workflow, value }) {
  const [language, setLanguage] = useState("curl");
  const text = snippet(language, workflow.name, value);
  return html`<section class="snippets" aria-label="From elsewhere">
    <div class="tabs" role="group" aria-label="Language">
      ${LANGUAGES.map((one) => html`<button type="button" aria-pressed=${one === language} onClick=${() => setLanguage(one)}>${one}</button>`)}
      <${Copy} text=${text} what="Copy the snippet" />
    </div>
    <pre tabindex="0"><code>${text}</code></pre>
  </section>`;
}

function snippet(language, name, value) {
  const input = value ?? {};
  const json = JSON.stringify(input);
  const quoted = `'${json.replaceAll("'", "'\\''")}'`;
  const door = location.origin;
  const plain = location.protocol === "https:" ? "" : "-plaintext ";
  switch (language) {
    case "curl":
      return `# start it, and get the run's id
curl ${door}/v1/workflows/${name}/runs \\
  -H 'content-type: application/json' -H "idempotency-key: $(uuidgen)" \\
  -d ${quoted}

# follow its text
curl -N ${door}/v1/runs/RUN_ID/output

# or start it and wait for the result
curl ${door}/v1/workflows/${name}/invoke \\
  -H 'content-type: application/json' -d ${quoted}`;
    case "Python":
      return `import asyncio
from onward import Client

async def main():
    async with Client() as client:  # ONWARD_GATEWAY, or 127.0.0.1:50051
        run = await client.start(${JSON.stringify(name)}, ${python(input)})
        async for view in run.watch():
            print(view.state, view.status and view.status.message)
        print(await run.result())

asyncio.run(main())`;
    default:
      return `# the input is bytes: JSON in base64
INPUT=$(printf %s ${quoted} | base64 | tr -d '\\n')
grpcurl ${plain}\\
  -d '{"workflow": ${JSON.stringify(name)}, "input": {"data": "'$INPUT'"}}' \\
  "\${ONWARD_GATEWAY:-127.0.0.1:50051}" onward.v1.GatewayService/StartRun

grpcurl ${plain}-d '{"run_id": "RUN_ID"}' \\
  "\${ONWARD_GATEWAY:-127.0.0.1:50051}" onward.v1.GatewayService/SubscribeRun`;
  }
}

function python(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`)
      .join(", ")}}`;
  return JSON.stringify(value);
}
