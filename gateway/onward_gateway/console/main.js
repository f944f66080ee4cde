// The console: which page, what stands around it, and the question for a key.

import { keepKey, onKeyWanted } from "./door.js";
import { ExecutorsPage } from "./executors.js";
import { html, render, useEffect, useRef, useState } from "./html.js";
import { BASE, go, usePlace } from "./place.js";
import { RunPage } from "./run.js";
import { RunsPage } from "./runs.js";
import { WorkflowsPage } from "./workflows.js";

const PAGES = { runs: "Runs", workflows: "Workflows", executors: "Executors" };

function App() {
  const { parts, query } = usePlace();
  const [page = "runs", name] = parts;
  useEffect(() => {
    if (!parts.length) go(`${BASE}/runs`, { replace: true });
  }, [parts.length]);
  return html`<a class="skip" href="#main">To the content</a>
    <header class="top">
      <a class="brand" href="${BASE}/runs" aria-label="Onward"><svg viewBox="0 0 24 16" aria-hidden="true"><path d="M2 2l6 6-6 6M10 2l6 6-6 6" /><circle cx="21" cy="8" r="1.6" /></svg><span>onward</span></a>
      <nav aria-label="Main">${Object.entries(PAGES).map(([path, title]) => html`<a href="${BASE}/${path}" aria-current=${page === path ? "page" : undefined}>${title}</a>`)}<a href="/docs">API</a></nav>
      <${Theme} />
    </header>
    <main id="main" tabindex="-1">${shown(page, name, query)}</main>
    <${KeyQuestion} />`;
}

function shown(page, name, query) {
  switch (page) {
    case "runs":
      return name
        ? html`<${RunPage} key=${name} runId=${name} query=${query} />`
        : html`<${RunsPage} query=${query} />`;
    case "workflows":
      return html`<${WorkflowsPage} name=${name} query=${query} />`;
    case "executors":
      return html`<${ExecutorsPage} />`;
    default:
      return html`<div class="empty"><h1>Nothing is here</h1><p><a href="${BASE}/runs">All runs</a></p></div>`;
  }
}

const THEMES = ["system", "light", "dark"];

function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem("onward.theme") ?? "system");
  function turn() {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    if (next === "system") {
      localStorage.removeItem("onward.theme");
      delete document.documentElement.dataset.theme;
    } else {
      localStorage.setItem("onward.theme", next);
      document.documentElement.dataset.theme = next;
    }
    setTheme(next);
  }
  return html`<button type="button" class="quiet theme" onClick=${turn} title="Light or dark">${{ system: "◐", light: "☀", dark: "☾" }[theme]} <span>${theme}</span></button>`;
}

function KeyQuestion() {
  const [asked, setAsked] = useState(null);
  const dialog = useRef(null);
  useEffect(() => onKeyWanted((problem, wrong) => new Promise((resolve) => setAsked({ problem, wrong, resolve }))), []);
  useEffect(() => {
    if (asked) dialog.current?.showModal();
  }, [asked]);
  if (!asked) return null;
  function give(event) {
    event.preventDefault();
    keepKey(new FormData(event.target).get("key").trim());
    setAsked(null);
    asked.resolve();
  }
  return html`<dialog ref=${dialog} class="key" aria-labelledby="key-title" onCancel=${(event) => event.preventDefault()}>
    <form onSubmit=${give}>
      <h2 id="key-title">API key</h2>
      <p>${asked.wrong ? "This door does not take that key." : "This door asks for a key."} It is kept in this tab until it is closed.</p>
      <label for="key">Key</label>
      <input id="key" name="key" type="password" autocomplete="off" required autofocus />
      <button class="main">Go on</button>
    </form>
  </dialog>`;
}

render(html`<${App} />`, document.getElementById("app"));
