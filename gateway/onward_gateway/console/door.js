// The HTTP door: requests, its errors, and streams of lines.

const KEY = "onward.key";

/** What the door answered instead of a result: problem+json, or that nobody answered (status 0). */
export class Problem extends Error {
  constructor(status, told = {}) {
    super(told.detail || told.title || (status ? `The door answered ${status}` : "The door does not answer"));
    this.status = status;
    this.title = told.title ?? "";
    this.reason = told.reason ?? "";
    this.violations = told.violations ?? [];
  }
}

/** Who shows the question for an API key. It is called when the door wants one, and resolves once there is one. */
let askForKey = async () => {};
let asking = null;

export function onKeyWanted(ask) {
  askForKey = ask;
}

export const keyGiven = () => sessionStorage.getItem(KEY) ?? "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Ask the door. Resolves to the Response when its status is 2xx, throws Problem otherwise. */
export async function request(path, { method = "GET", accept = "application/json", body, headers = {}, signal } = {}) {
  for (;;) {
    const key = keyGiven();
    let response;
    try {
      response = await fetch(path, {
        method,
        signal,
        cache: "no-store",
        body: body === undefined ? undefined : JSON.stringify(body),
        headers: {
          accept,
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...(key ? { authorization: `Bearer ${key}` } : {}),
          ...headers,
        },
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Problem(0);
    }
    if (response.ok) return response;
    let told = {};
    try {
      told = await response.json();
    } catch {
      // Not from the door: a proxy's page, perhaps.
    }
    const problem = new Problem(response.status, told);
    if (response.status !== 401) throw problem;
    if (keyGiven() === key) await (asking ??= askForKey(problem, Boolean(key)).finally(() => (asking = null)));
  }
}

export async function ask(path, options) {
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
}

/** POST something that must happen once, however often the network makes us send it. */
export async function send(path, body, { key = onceKey() } = {}) {
  for (let pause = 250; ; pause *= 2) {
    try {
      return await ask(path, { method: "POST", body, headers: { "idempotency-key": key } });
    } catch (error) {
      const lost = error instanceof Problem && (error.status === 0 || error.status === 503);
      if (!lost || pause > 4000) throw error;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

/** A fresh idempotency key. crypto.randomUUID() needs HTTPS or loopback, this does not. */
export function onceKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Yields the parsed lines of an NDJSON response, letting the page breathe between slices of work. */
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let until = performance.now() + SLICE_MS;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part) yield JSON.parse(part);
        if (performance.now() > until) {
          await breath();
          until = performance.now() + SLICE_MS;
        }
      }
    }
    if (rest.trim()) yield JSON.parse(rest);
  } finally {
    reader.cancel().catch(() => {});
  }
}

const SLICE_MS = 12;

/** Let the browser draw and answer the user before going on. */
const channel = new MessageChannel();
const breathing = [];
channel.port1.onmessage = () => breathing.shift()?.();

export function breath() {
  return new Promise((resolve) => {
    breathing.push(resolve);
    channel.port2.postMessage(null);
  });
}
