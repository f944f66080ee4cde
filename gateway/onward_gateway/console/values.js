// A value as a tree that folds. Long ones are drawn piece by piece, on demand.

import { request } from "./door.js";
import { html, useState } from "./html.js";
import { Copy } from "./parts.js";
import { Blob as Apart, Bytes, decode } from "./view.js";
import { bytes } from "./wording.js";

const OPEN_DEPTH = 2;
const MEMBERS = 100;
const TEXT_CHARS = 4000;
const DRAWN_MAX = 8 * 1024 * 1024;

/** A payload of an event or a run. */
export function Payload({ payload, label }) {
  if (!payload) return null;
  if (!("value" in payload || "blob" in payload || "base64" in payload))
    return html`<${Frame} label=${label}>
      <p class="hint">${payload.size ? `${bytes(payload.size)}, hidden or too long to be shown here` : "nothing to show"}</p>
    <//>`;
  return html`<${Value} value=${decode(payload)} label=${label} />`;
}

/** Any value, with a heading and a way to copy it. */
export function Value({ value, label }) {
  if (value instanceof Apart) return html`<${Frame} label=${label}><${Far} blob=${value} /><//>`;
  if (value instanceof Bytes)
    return html`<${Frame} label=${label}><p class="hint">${value.mediaType}, ${bytes(Math.floor(value.base64.length * 0.75))}</p><//>`;
  const text = () => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
  return html`<${Frame} label=${label} tool=${html`<${CopyLater} text=${text} what="Copy ${label ?? "value"}" />`}>
    <div class="value">${typeof value === "string" ? html`<${Long} text=${value} />` : html`<${Node} value=${value} depth=${0} />`}</div>
  <//>`;
}

function Frame({ label, tool, children }) {
  return html`<div class="framed">
    ${label && html`<div class="framed-head"><h2>${label}</h2>${tool}</div>`}
    ${children}
  </div>`;
}

// What is copied is written out when somebody wants it, not at each drawing.
function CopyLater({ text, what }) {
  const [wanted, setWanted] = useState("");
  return html`<span onPointerEnter=${() => setWanted(text())} onFocusIn=${() => setWanted(text())}>
    <${Copy} text=${wanted} what=${what} />
  </span>`;
}

function Far({ blob }) {
  const [state, setState] = useState({});
  async function load() {
    setState({ busy: true });
    try {
      const response = await request(blob.url, { accept: "*/*" });
      const data = await response.blob();
      if (data.size > DRAWN_MAX || !/json|^text\//.test(blob.mediaType)) return save(data);
      const text = await data.text();
      setState({ value: /json/.test(blob.mediaType) ? JSON.parse(text) : text, loaded: true });
    } catch (problem) {
      setState({ problem });
    }
  }
  function save(data) {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(data), download: "value" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    setState({});
  }
  if (state.loaded) return html`<div class="value"><${Node} value=${state.value} depth=${0} /></div>`;
  return html`<p class="hint">
    <button type="button" onClick=${load} disabled=${state.busy}>Load ${bytes(blob.size)}</button> kept apart from the log
    ${state.problem && html`<span class="bad"> ${state.problem.message}</span>`}
  </p>`;
}

function Long({ text }) {
  const [whole, setWhole] = useState(false);
  if (text.length <= TEXT_CHARS || whole) return html`<span class="text">${text}</span>`;
  return html`<span class="text">${text.slice(0, TEXT_CHARS)}</span>
    <button type="button" class="quiet" onClick=${() => setWhole(true)}>… all ${bytes(text.length)}</button>`;
}

function Node({ value, depth }) {
  if (value === null) return html`<span class="v-null">null</span>`;
  if (typeof value === "string") return html`<span class="v-text">"<${Long} text=${value} />"</span>`;
  if (typeof value !== "object") return html`<span class="v-${typeof value}">${String(value)}</span>`;
  return html`<${Branch} value=${value} depth=${depth} />`;
}

function Branch({ value, depth }) {
  const list = Array.isArray(value);
  const members = list ? value : Object.keys(value);
  const [open, setOpen] = useState(depth < OPEN_DEPTH && (depth === 0 || members.length <= 20));
  const [shown, setShown] = useState(MEMBERS);
  const [left, right] = list ? "[]" : "{}";
  if (!members.length) return html`<span class="v-null">${left}${right}</span>`;
  const label = list ? `${members.length} items` : `${members.length} fields`;
  return html`<span class="branch">
    <button type="button" class="fold" aria-expanded=${open} onClick=${() => setOpen(!open)} title=${label}>
      <span aria-hidden="true">${open ? "▾" : "▸"}</span><span class="unseen">${open ? "Fold" : "Unfold"} ${label}</span>
    </button>${left}${
      open
        ? html`<ul>
            ${members.slice(0, shown).map(
              (member, index) =>
                html`<li key=${index}>
                  ${list ? null : html`<span class="v-name">${member}</span>: `}
                  <${Node} value=${list ? member : value[member]} depth=${depth + 1} />
                </li>`,
            )}
            ${
              members.length > shown &&
              html`<li>
              <button type="button" class="quiet" onClick=${() => setShown(shown + 10 * MEMBERS)}>
                … ${members.length - shown} more
              </button>
            </li>`
            }
          </ul>`
        : html`<span class="hint"> ${label} </span>`
    }${right}
  </span>`;
}
