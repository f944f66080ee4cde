// A form from a JSON Schema. Whatever a schema can say that no field here can, is written as JSON.
//
// The form holds one value and hands changes up. The door checks it: what it finds is shown at the fields.

import { html, useState } from "./html.js";

const LONG = 80;
const DEPTH_MAX = 12;

/** What a form for this schema begins with. */
export function initial(schema, root = schema, depth = 0) {
  const form = plain(schema, root);
  if ("const" in form) return form.const;
  if ("default" in form) return structuredClone(form.default);
  if (form.enum) return form.enum[0];
  const options = form.anyOf ?? form.oneOf;
  if (options)
    return options.some((one) => kindOf(plain(one, root), root) === "null")
      ? null
      : initial(options[0], root, depth + 1);
  switch (kindOf(form, root)) {
    case "object": {
      if (depth > DEPTH_MAX) return {};
      // What is required, and what tells one option from another.
      const needed = Object.entries(form.properties ?? {}).filter(
        ([name, one]) => form.required?.includes(name) || "const" in plain(one, root),
      );
      return Object.fromEntries(needed.map(([name, one]) => [name, initial(one, root, depth + 1)]));
    }
    case "array": {
      const least = depth > DEPTH_MAX ? 0 : (form.minItems ?? 0);
      return Array.from({ length: Math.min(least, 20) }, () => initial(form.items ?? {}, root, depth + 1));
    }
    case "boolean":
      return false;
    case "integer":
    case "number":
      return undefined;
    case "string":
      return "";
    default:
      return null;
  }
}

/** Follow $ref and unwrap what has one choice. What is said beside a $ref (title, default) stays. */
function plain(schema, root) {
  if (schema === true || schema === false || !schema) return {};
  for (let steps = 0; steps < 20 && schema; steps++) {
    const { $ref, ...rest } = schema;
    if (typeof $ref === "string") {
      const found = $ref
        .replace(/^#\/?/, "")
        .split("/")
        .filter(Boolean)
        .reduce((at, token) => at?.[decodeURIComponent(token).replaceAll("~1", "/").replaceAll("~0", "~")], root);
      schema = { ...(typeof found === "object" ? found : {}), ...rest };
    } else if (schema.allOf?.length === 1) {
      const { allOf, ...beside } = schema;
      schema = { ...allOf[0], ...beside };
    } else break;
  }
  return schema ?? {};
}

function kindOf(form) {
  if (form.enum) return "enum";
  if ("const" in form) return "const";
  const options = form.anyOf ?? form.oneOf;
  if (options) return "options";
  if (Array.isArray(form.type)) return "json";
  if (form.type === "object" && !form.properties) return form.additionalProperties === false ? "object" : "json";
  if (form.type === "array" && (form.prefixItems || !form.items)) return "json";
  if (["object", "array", "string", "integer", "number", "boolean", "null"].includes(form.type)) return form.type;
  return form.properties ? "object" : "json";
}

/** The door's violations by the JSON pointer of the field that each is shown at. */
export function placed(violations) {
  const found = new Map();
  for (const { field = "", description = "" } of violations) {
    // A member that is missing is told at its object.
    const missing = /^"([^"]+)" is a required property/.exec(description);
    const at = missing ? `${field}/${missing[1]}` : field;
    found.set(at, [...(found.get(at) ?? []), missing ? "required" : description]);
  }
  return found;
}

/** A whole form: fields, or the same value as JSON. `onChange(value, sound)`. */
export function SchemaForm({ schema, value, onChange, problems = new Map(), name, asJson, onAsJson }) {
  const form = plain(schema ?? {}, schema);
  const known = new Set();
  const top = kindOf(form);
  const body = asJson
    ? html`<${Json} label=${name} id="field" value=${value} onChange=${onChange} rows=${10} problems=${[...problems.values()].flat()} />`
    : html`<${Field} schema=${form} root=${schema} value=${value} onChange=${onChange} at="" problems=${problems} known=${known} bare=${top === "object"} label=${name} />`;
  return html`<div class="form">
    ${
      onAsJson &&
      html`<div class="form-switch">
      <button type="button" class="quiet" aria-pressed=${asJson} onClick=${() => onAsJson(!asJson)}>${asJson ? "Fields" : "Edit as JSON"}</button>
    </div>`
    }
    ${body}
    ${!asJson && html`<${Unplaced} problems=${problems} schema=${schema} />`}
  </div>`;
}

// What is wrong somewhere that has no field is said below all of them.
function Unplaced({ problems, schema }) {
  const left = [...problems].filter(([at]) => at === "" || !hasField(schema, at));
  if (!left.length) return null;
  return html`<div class="violation" role="alert">${left.map(([at, what]) => html`<p>${at && html`<code>${at}</code> `}${what.join("; ")}</p>`)}</div>`;
}

function hasField(schema, at) {
  let form = plain(schema, schema);
  for (const token of at.split("/").slice(1)) {
    const options = form.anyOf ?? form.oneOf;
    if (options)
      form = plain(
        options.find((one) => kindOf(plain(one, schema)) !== "null"),
        schema,
      );
    if (kindOf(form) === "array") form = plain(form.items, schema);
    else if (Object.hasOwn(form.properties ?? {}, token)) form = plain(form.properties[token], schema);
    else return false;
  }
  return true;
}

function Field({ schema, root, value, onChange, at, problems, label, required = true, bare = false, depth = 0 }) {
  const form = plain(schema, root);
  const id = `field${at.replaceAll("/", "-")}`;
  const told = problems.get(at) ?? [];
  const kind = depth > DEPTH_MAX ? "json" : kindOf(form);
  const shared = { id, label, form, value, onChange, told, required, at, root, problems, depth };
  switch (kind) {
    case "object":
      return html`<${ObjectField} ...${shared} bare=${bare} />`;
    case "array":
      return html`<${ArrayField} ...${shared} />`;
    case "options":
      return html`<${OptionsField} ...${shared} />`;
    case "enum":
      return html`<${Line} ...${shared}>
        <select id=${id} value=${String(form.enum.findIndex((one) => same(one, value)))} onChange=${(event) => onChange(form.enum[Number(event.target.value)])} ...${wired(id, form, told)}>
          ${!form.enum.some((one) => same(one, value)) && html`<option value="-1">choose…</option>`}
          ${form.enum.map((one, index) => html`<option value=${String(index)}>${typeof one === "string" ? one : JSON.stringify(one)}</option>`)}
        </select>
      <//>`;
    case "const":
      return html`<${Line} ...${shared}><output id=${id}>${JSON.stringify(form.const)}</output><//>`;
    case "boolean":
      return html`<${Line} ...${shared}>
        <input type="checkbox" id=${id} checked=${value === true} onChange=${(event) => onChange(event.target.checked)} ...${wired(id, form, told)} />
      <//>`;
    case "integer":
    case "number":
      return html`<${Line} ...${shared}>
        <${NumberInput} id=${id} form=${form} value=${value} whole=${kind === "integer"} onChange=${onChange} extra=${wired(id, form, told)} />
      <//>`;
    case "string":
      return html`<${Line} ...${shared}><${TextInput} id=${id} form=${form} value=${value} onChange=${onChange} extra=${wired(id, form, told)} /><//>`;
    case "null":
      return html`<${Line} ...${shared}><output id=${id}>null</output><//>`;
    default:
      return html`<${Json} id=${id} label=${label} value=${value} onChange=${onChange} problems=${told} form=${form} required=${required} />`;
  }
}

function wired(id, form, told) {
  const by = [form.description && `${id}-about`, told.length && `${id}-wrong`].filter(Boolean).join(" ");
  return { "aria-describedby": by || undefined, "aria-invalid": told.length ? "true" : undefined };
}

function Line({ id, label, form, told, required, children }) {
  return html`<div class="field">
    ${label && html`<label for=${id}>${label}${required ? "" : html`<span class="optional"> optional</span>`}</label>`}
    ${children} ${form.description && html`<p class="about" id="${id}-about">${form.description}</p>`}
    ${told.length > 0 && html`<p class="violation" role="alert" id="${id}-wrong">${told.join("; ")}</p>`}
  </div>`;
}

function TextInput({ id, form, value, onChange, extra }) {
  const text = typeof value === "string" ? value : "";
  const types = { date: "date", "date-time": "text", email: "email", uri: "url", password: "password" };
  const type = form.writeOnly ? "password" : (types[form.format] ?? "text");
  const [tall, setTall] = useState(text.length > LONG || text.includes("\n") || (form.maxLength ?? 0) > 200);
  if (tall && type === "text")
    return html`<textarea id=${id} rows="5" spellcheck="false" value=${text} onInput=${(event) => onChange(event.target.value)} ...${extra}></textarea>`;
  return html`<span class="with-button">
    <input type=${type} id=${id} value=${text} autocomplete="off" placeholder=${form.examples?.[0] ?? (form.format === "date-time" ? "2026-01-31T12:00:00Z" : "")} onInput=${(event) => onChange(event.target.value)} ...${extra} />
    ${type === "text" && html`<button type="button" class="quiet" onClick=${() => setTall(true)} aria-label="More lines" title="More lines">⤢</button>`}
  </span>`;
}

// What is typed stays as typed until it is a number, and is handed up as text where it is none: the door says so.
function NumberInput({ id, form, value, whole, onChange, extra }) {
  const [typed, setTyped] = useState(null);
  const shown =
    typed !== null && same(parse(typed), value) ? typed : value === undefined || value === null ? "" : String(value);
  function parse(text) {
    const number = Number(text);
    return text.trim() === "" ? undefined : Number.isFinite(number) ? number : text;
  }
  return html`<input type="text" inputmode=${whole ? "numeric" : "decimal"} id=${id} value=${shown} autocomplete="off"
    placeholder=${[form.minimum, form.maximum].some((bound) => bound !== undefined) ? `${form.minimum ?? "…"} to ${form.maximum ?? "…"}` : ""}
    onInput=${(event) => {
      setTyped(event.target.value);
      onChange(parse(event.target.value));
    }}
    ...${extra} />`;
}

function ObjectField({ id, label, form, value, onChange, told, at, root, problems, bare, depth, required }) {
  const object = value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
  const needed = new Set(form.required ?? []);
  function change(name, one) {
    const { [name]: _, ...rest } = object;
    onChange(one === undefined ? rest : { ...rest, [name]: one });
  }
  const properties = Object.entries(form.properties ?? {});
  const inside = properties.map(([name, schema]) => {
    const shape = plain(schema, root);
    const given = Object.hasOwn(object, name) ? object[name] : "default" in shape ? shape.default : undefined;
    return html`<${Field} key=${name} schema=${schema} root=${root} label=${name} required=${needed.has(name)} value=${given}
      onChange=${(one) => change(name, one)} at="${at}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}" problems=${problems} depth=${depth + 1} />`;
  });
  if (bare) return properties.length ? html`<div>${inside}</div>` : html`<p class="hint">It takes no input.</p>`;
  return html`<fieldset id=${id}>
    <legend>${label}${required ? "" : html`<span class="optional"> optional</span>`}</legend>
    ${form.description && html`<p class="about">${form.description}</p>`} ${inside}
    ${told.length > 0 && html`<p class="violation" role="alert">${told.join("; ")}</p>`}
  </fieldset>`;
}

function ArrayField({ id, label, form, value, onChange, told, at, root, problems, depth, required }) {
  const list = Array.isArray(value) ? value : [];
  const put = (index, one) => onChange(list.map((old, place) => (place === index ? one : old)));
  return html`<fieldset id=${id}>
    <legend>${label}${required ? "" : html`<span class="optional"> optional</span>`}</legend>
    ${form.description && html`<p class="about">${form.description}</p>`}
    ${list.map(
      (one, index) =>
        html`<div class="item" key=${index}>
          <${Field} schema=${form.items} root=${root} label="${label ?? "item"} ${index + 1}" value=${one} onChange=${(changed) => put(index, changed ?? null)} at="${at}/${index}" problems=${problems} depth=${depth + 1} />
          <button type="button" class="quiet" aria-label="Remove ${label ?? "item"} ${index + 1}" onClick=${() => onChange(list.filter((_, place) => place !== index))}>✕</button>
        </div>`,
    )}
    <button type="button" class="small" onClick=${() => onChange([...list, initial(form.items ?? {}, root) ?? null])}>+ ${label ? `Add to ${label}` : "Add"}</button>
    ${told.length > 0 && html`<p class="violation" role="alert">${told.join("; ")}</p>`}
  </fieldset>`;
}

function OptionsField({ id, label, form, value, onChange, told, at, root, problems, depth, required }) {
  const options = (form.anyOf ?? form.oneOf).map((one) => plain(one, root));
  const nullable = options.some((one) => kindOf(one) === "null");
  const real = options.filter((one) => kindOf(one) !== "null");
  const [picked, setPicked] = useState(null);
  const fitting = real.findIndex((one) => fits(one, value, root));
  const at_ = picked ?? Math.max(0, fitting);
  const chosen = real[at_] ?? {};
  const unset = nullable && (value === null || value === undefined);
  if (!nullable && real.length === 1)
    return html`<${Field} schema=${{ ...chosen, description: form.description ?? chosen.description }} root=${root} value=${value} onChange=${onChange} at=${at} problems=${problems} label=${label} required=${required} depth=${depth + 1} />`;
  const words = [
    ...(nullable ? ["none"] : []),
    ...real.map((one, index) => one.title ?? wordOf(one) ?? `option ${index + 1}`),
  ];
  const current = unset ? 0 : at_ + (nullable ? 1 : 0);
  function pick(index) {
    if (nullable && index === 0) {
      setPicked(null);
      return onChange(null);
    }
    const which = index - (nullable ? 1 : 0);
    setPicked(which);
    onChange(initial(real[which], root) ?? (kindOf(real[which]) === "json" ? null : ""));
  }
  return html`<div class="field">
    <label for="${id}-kind">${label}${required ? "" : html`<span class="optional"> optional</span>`}</label>
    <select id="${id}-kind" value=${String(current)} onChange=${(event) => pick(Number(event.target.value))}>
      ${words.map((word, index) => html`<option value=${String(index)}>${word}</option>`)}
    </select>
    ${!unset && html`<div class="nested"><${Field} schema=${chosen} root=${root} value=${value} onChange=${(one) => onChange(one === undefined ? "" : one)} at=${at} problems=${problems} depth=${depth + 1} label="${label ?? "value"} (${words[current]})" /></div>`}
    ${form.description && html`<p class="about">${form.description}</p>`}
    ${unset && told.length > 0 && html`<p class="violation" role="alert">${told.join("; ")}</p>`}
  </div>`;
}

// Text that is no JSON yet is handed up as NOT_JSON, so that it cannot be sent by accident.
export const NOT_JSON = Symbol("text that is not JSON");

export function Json({ id, label, value, onChange, problems = [], form = {}, rows = 4, required = true }) {
  const [typed, setTyped] = useState(null);
  const shown = typed ?? (value === undefined ? "" : JSON.stringify(value, null, 2));
  const [wrong, setWrong] = useState("");
  function type(text) {
    setTyped(text);
    try {
      onChange(text.trim() ? JSON.parse(text) : undefined);
      setWrong("");
    } catch (error) {
      setWrong(error.message);
      onChange(NOT_JSON);
    }
  }
  return html`<div class="field">
    <label for=${id}>${label ?? "value"} <span class="optional">JSON${required ? "" : ", optional"}</span></label>
    <textarea id=${id} class="code" rows=${rows} spellcheck="false" value=${shown} onInput=${(event) => type(event.target.value)} aria-invalid=${wrong || problems.length ? "true" : undefined} aria-describedby=${wrong || problems.length ? `${id}-wrong` : undefined}></textarea>
    ${form.description && html`<p class="about">${form.description}</p>`}
    ${(wrong || problems.length > 0) && html`<p class="violation" role="alert" id="${id}-wrong">${[wrong && `not JSON yet: ${wrong}`, ...problems].filter(Boolean).join("; ")}</p>`}
  </div>`;
}

/** Whether there is text in it that is no JSON yet. */
export function unfinished(value) {
  if (value === NOT_JSON) return true;
  return value !== null && typeof value === "object" && Object.values(value).some(unfinished);
}

function fits(form, value, root) {
  if (value === null || value === undefined) return false;
  switch (kindOf(form)) {
    case "enum":
      return form.enum.some((one) => same(one, value));
    case "const":
      return same(form.const, value);
    case "array":
      return Array.isArray(value);
    case "object": {
      if (typeof value !== "object" || Array.isArray(value)) return false;
      const consts = Object.entries(form.properties ?? {}).filter(([, one]) => "const" in plain(one, root));
      return (
        consts.every(([name, one]) => same(value[name], plain(one, root).const)) &&
        Object.keys(value).every((name) => name in (form.properties ?? {}))
      );
    }
    case "integer":
      return Number.isInteger(value);
    default:
      return form.type === typeof value;
  }
}

const wordOf = (form) =>
  "const" in form
    ? JSON.stringify(form.const)
    : ({ string: "text", object: "fields", array: "list" }[form.type] ?? form.type);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
