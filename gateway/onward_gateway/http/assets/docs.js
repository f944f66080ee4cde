// Shows openapi.json. Everything in it is put on the page as text, never as markup.
"use strict";

const KEY = "onward-api-key";
let description;

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute in element && typeof value !== "string") element[attribute] = value;
    else element.setAttribute(attribute, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

function resolved(schema) {
  for (let hops = 0; schema && schema.$ref && hops < 20; hops += 1) {
    let found = description;
    for (const part of decodeURIComponent(schema.$ref).slice(2).split("/")) {
      found = found?.[part.replaceAll("~1", "/").replaceAll("~0", "~")];
    }
    schema = found;
  }
  return schema ?? {};
}

// A schema in a form that reads like a value of it, with types in the place of values.
function sketch(schema, depth = 0) {
  const name = schema?.$ref?.split("/").pop();
  const one = resolved(schema);
  const pad = "  ".repeat(depth + 1);
  if (depth > 5) return name ?? "…";
  if (one.const !== undefined) return JSON.stringify(one.const);
  if (one.enum) return one.enum.map((each) => JSON.stringify(each)).join(" | ");
  const choices = one.anyOf ?? one.oneOf;
  if (choices) return choices.map((each) => sketch(each, depth)).join(" | ");
  if (one.properties && Object.keys(one.properties).length) {
    const lines = Object.entries(one.properties).map(([key, value]) => {
      const optional = (one.required ?? []).includes(key) ? "" : "?";
      const says = resolved(value).description ?? value.description;
      return `${pad}${JSON.stringify(key)}${optional}: ${sketch(value, depth + 1)}${says ? `  // ${says.replaceAll("\n", " ")}` : ""}`;
    });
    return `{\n${lines.join("\n")}\n${"  ".repeat(depth)}}`;
  }
  if (one.type === "array") return `[${one.items ? sketch(one.items, depth) : "any"}, …]`;
  if (one.type === "object") return one.additionalProperties?.type ? `{…: ${one.additionalProperties.type}}` : "{…}";
  const type = Array.isArray(one.type) ? one.type.join(" | ") : (one.type ?? "any");
  const bounds = ["format", "minimum", "maximum", "minLength", "maxLength", "pattern", "default"]
    .filter((key) => one[key] !== undefined)
    .map((key) => `${key} ${typeof one[key] === "string" ? one[key] : JSON.stringify(one[key])}`);
  return bounds.length ? `${type} (${bounds.join(", ")})` : type;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function parametersTable(operation, inputs) {
  if (!operation.parameters?.length) return null;
  const rows = operation.parameters.map((parameter) => {
    const input = make("input", { "aria-label": parameter.name, size: "18" });
    inputs.push([parameter, input]);
    return make(
      "tr", {},
      make("td", {}, make("code", {}, parameter.name), parameter.required ? " *" : ""),
      make("td", { class: "soft" }, parameter.in),
      make("td", {}, parameter.description ?? "", make("br", {}), make("span", { class: "soft" }, sketch(parameter.schema))),
      make("td", {}, input),
    );
  });
  const head = make("tr", {}, ...["Name", "In", "What", "Value"].map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function responsesTable(operation) {
  const rows = Object.entries(operation.responses ?? {}).sort().map(([status, response]) => {
    const forms = Object.entries(response.content ?? {}).map(([type, content]) => [
      make("div", { class: "soft" }, type),
      content.schema && type === "application/json" ? make("pre", { tabIndex: 0 }, sketch(content.schema)) : null,
    ]);
    return make(
      "tr", {},
      make("td", { class: status < "400" ? "good" : "bad" }, status),
      make("td", {}, response.description ?? "", ...forms.flat().filter(Boolean)),
    );
  });
  return make("table", {}, make("tbody", {}, ...rows));
}

function requestOf(method, path, inputs, body) {
  const query = new URLSearchParams();
  const headers = {};
  let url = path;
  for (const [parameter, input] of inputs) {
    if (input.value === "") continue;
    if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "query") query.append(parameter.name, input.value);
    else headers[parameter.name] = input.value;
  }
  if ([...query].length) url += `?${query}`;
  if (body) headers["content-type"] = "application/json";
  return { method: method.toUpperCase(), url, headers, body: body?.value };
}

function curlOf({ method, url, headers, body }) {
  const words = ["curl", "-N", quoted(location.origin + url)];
  if (method !== "GET") words.splice(1, 0, "-X", method);
  if (sessionStorage.getItem(KEY)) words.push("-H", '"Authorization: Bearer $ONWARD_API_KEY"');
  for (const [name, value] of Object.entries(headers)) words.push("-H", quoted(`${name}: ${value}`));
  if (body) words.push("-d", quoted(body));
  return words.join(" ");
}

async function send(request, into, stop) {
  into.replaceChildren();
  const status = make("p", { role: "status" }, "…");
  const text = make("pre", { tabIndex: 0 });
  into.append(status, text);
  try {
    const response = await fetch(request.url, {
      method: request.method, body: request.body, headers: { ...request.headers, ...authorization() }, signal: stop,
    });
    status.className = response.ok ? "good" : "bad";
    status.textContent = `${response.status} ${response.statusText} ${response.headers.get("content-type") ?? ""}`;
    if (!response.body) return;
    if (/json$|json;/.test(response.headers.get("content-type") ?? "") && !/ndjson/.test(response.headers.get("content-type"))) {
      const data = await response.text();
      try { text.textContent = JSON.stringify(JSON.parse(data), null, 2); } catch { text.textContent = data; }
      return;
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) text.append(piece.value);
  } catch (error) {
    status.className = "bad";
    status.textContent = String(error);
  }
}

function operationBox(method, path, operation) {
  const box = make("details", { class: "operation", id: operation.operationId });
  box.append(make(
    "summary", {},
    make("span", { class: "method" }, method.toUpperCase()),
    make("span", { class: "path" }, path),
    make("span", { class: "soft" }, ` — ${operation.summary ?? ""}`),
  ));
  // Made when it is opened first: a suite may serve hundreds of workflows.
  box.addEventListener("toggle", () => { if (box.children.length === 1) box.append(content(method, path, operation)); });
  return box;
}

function content(method, path, operation) {
  const inputs = [];
  const inside = make("div", {});
  if (operation.description) inside.append(make("p", {}, operation.description));
  const table = parametersTable(operation, inputs);
  if (table) inside.append(make("h3", {}, "Parameters"), table);
  const json = operation.requestBody?.content?.["application/json"];
  let body = null;
  if (json) {
    body = make("textarea", { "aria-label": "Body", spellcheck: "false" });
    body.value = json.example === undefined ? "" : JSON.stringify(json.example, null, 2);
    inside.append(make("h3", {}, "Body"), make("pre", { tabIndex: 0 }, sketch(json.schema)), body);
  }
  const forms = Object.keys(operation.responses?.["200"]?.content ?? {});
  if (forms.length > 1) {
    const accept = make("input", { "aria-label": "Accept", size: "28", value: forms[0] });
    inputs.push([{ in: "header", name: "accept" }, accept]);
    inside.append(make("p", {}, make("label", {}, "Accept ", accept), make("span", { class: "soft" }, ` ${forms.join(", ")}`)));
  }
  const curl = make("pre", { tabIndex: 0 });
  const answer = make("div", {});
  const show = () => { curl.textContent = curlOf(requestOf(method, path, inputs, body)); };
  inside.addEventListener("input", show);
  show();
  let stop = new AbortController();
  const button = make("button", { type: "button" }, "Send");
  button.addEventListener("click", () => {
    stop.abort();
    stop = new AbortController();
    send(requestOf(method, path, inputs, body), answer, stop.signal);
  });
  inside.append(make("h3", {}, "Try it"), curl, button, answer, make("h3", {}, "Answers"), responsesTable(operation));
  return inside;
}

function show() {
  document.getElementById("about").textContent = `${description.info.description} Version ${description.info.version}.`;
  const groups = new Map(description.tags.map((tag) => [tag.name, { about: tag.description, boxes: [] }]));
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      groups.get(operation.tags?.[0])?.boxes.push(operationBox(method, path, operation));
    }
  }
  const main = document.getElementById("main");
  const nav = document.getElementById("groups");
  main.replaceChildren();
  nav.replaceChildren();
  for (const [name, { about, boxes }] of groups) {
    main.append(make("section", { id: `group-${name}` }, make("h2", {}, name), make("p", { class: "soft" }, about ?? ""), ...boxes));
    nav.append(make("a", { href: `#group-${name}` }, name));
  }
  const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (wanted) { wanted.open = true; wanted.scrollIntoView(); }
}

async function load() {
  const form = document.getElementById("key");
  const response = await fetch("/openapi.json", { headers: authorization() });
  form.hidden = response.status !== 401 && response.status !== 403 && !sessionStorage.getItem(KEY);
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    document.getElementById("main").replaceChildren(make("p", { class: "bad" }, problem.detail ?? `status ${response.status}`));
    return;
  }
  description = await response.json();
  show();
}

document.getElementById("key").addEventListener("submit", (event) => {
  event.preventDefault();
  // For this tab only, and gone with it.
  sessionStorage.setItem(KEY, new FormData(event.target).get("key").trim());
  load();
});
load();
