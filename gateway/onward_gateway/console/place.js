// Where the reader is: the address bar holds all of it, so that a reload or a sent link shows the same.

import { useEffect, useReducer } from "./html.js";

export const BASE = "/console";
const watchers = new Set();

function tell() {
  for (const watcher of watchers) watcher();
}

/** The path below /console as its parts, and the query. */
export function here() {
  const parts = location.pathname.slice(BASE.length).split("/").filter(Boolean).map(decodePart);
  return { parts, query: new URLSearchParams(location.search) };
}

export function go(path, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", path);
  tell();
}

/** Change some of the query; an empty value takes one out. */
export function refine(changes, { replace = true } = {}) {
  const { query } = here();
  for (const [name, value] of Object.entries(changes)) {
    query.delete(name);
    for (const one of [value].flat()) if (one) query.append(name, one);
  }
  const text = query.toString();
  go(location.pathname + (text ? `?${text}` : ""), { replace });
}

export function usePlace() {
  const [, redraw] = useReducer((count) => count + 1, 0);
  useEffect(() => {
    watchers.add(redraw);
    return () => watchers.delete(redraw);
  }, []);
  return here();
}

export const runPath = (runId) => `${BASE}/runs/${encodeURIComponent(runId)}`;
export const workflowPath = (name) => `${BASE}/workflows/${encodeURIComponent(name)}`;

addEventListener("popstate", tell);

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (
    !link ||
    event.defaultPrevented ||
    event.button ||
    event.metaKey ||
    event.ctrlKey ||
    event.shiftKey ||
    event.altKey
  )
    return;
  if (
    link.origin !== location.origin ||
    !link.pathname.startsWith(BASE) ||
    link.target ||
    link.hasAttribute("download")
  )
    return;
  event.preventDefault();
  go(link.pathname + link.search);
});

function decodePart(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
