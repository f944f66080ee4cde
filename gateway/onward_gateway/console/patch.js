// A JSON document that is patched in place, all or nothing, and can go back: the same rules as onward.patch in Python,
// so that every reader of a log agrees on which patches apply.

export class PatchError extends Error {}

const INDEX = /^(0|[1-9][0-9]{0,17})$/;
const BAD_ESCAPE = /~(?![01])/;

export class Document {
  #holder;

  constructor(value) {
    // One container above the root makes "replace the whole document" an ordinary replacement.
    this.#holder = [value];
  }

  get value() {
    return this.#holder[0];
  }

  /** Apply an RFC 6902 patch with "append"; returns what takes it back. Throws PatchError, and then nothing changed. */
  patch(operations) {
    if (!Array.isArray(operations)) throw new PatchError("a patch is an array of operations");
    const undo = [];
    try {
      for (const operation of operations) this.#apply(operation, undo);
    } catch (error) {
      Document.undo(undo);
      throw error instanceof RangeError ? new PatchError("nested too deep") : error;
    }
    return undo;
  }

  static undo(steps) {
    for (const step of steps.toReversed()) step();
  }

  #apply(operation, undo) {
    if (!isObject(operation)) throw new PatchError("an operation is an object");
    const path = pointer(operation, "path");
    switch (own(operation, "op")) {
      case "add":
        return this.#add(path, given(operation), undo);
      case "remove":
        return this.#remove(path, undo);
      case "replace":
        return this.#replace(path, given(operation), undo);
      case "move": {
        const source = pointer(operation, "from");
        if (path.length > source.length && source.every((token, place) => token === path[place]))
          throw new PatchError("a value cannot move into itself");
        const moved = this.#get(source);
        if (path.length !== source.length || path.some((token, place) => token !== source[place])) {
          this.#remove(source, undo);
          this.#add(path, moved, undo);
        }
        return;
      }
      case "copy":
        return this.#add(path, structuredClone(this.#get(pointer(operation, "from"))), undo);
      case "test":
        if (!equal(this.#get(path), given(operation))) throw new PatchError(`test failed at ${operation.path}`);
        return;
      case "append":
        return this.#append(path, given(operation), undo);
      default:
        throw new PatchError(`unknown operation ${operation.op}`);
    }
  }

  #parent(path) {
    let parent = this.#holder;
    for (const token of ["0", ...path].slice(0, -1)) parent = parent[key(parent, token)];
    return parent;
  }

  #locate(path) {
    const parent = this.#parent(path);
    return [parent, key(parent, path.length ? path.at(-1) : "0")];
  }

  #get(path) {
    const [parent, at] = this.#locate(path);
    return parent[at];
  }

  #add(path, value, undo) {
    const parent = this.#parent(path);
    const last = path.at(-1);
    if (path.length && Array.isArray(parent)) {
      const at = last === "-" ? parent.length : index(last, parent.length + 1);
      parent.splice(at, 0, value);
      undo.push(() => parent.splice(at, 1));
    } else if (path.length && isObject(parent) && !Object.hasOwn(parent, last)) {
      assign(parent, last, value);
      undo.push(() => delete parent[last]);
    } else {
      this.#replace(path, value, undo);
    }
  }

  #remove(path, undo) {
    if (!path.length) throw new PatchError("the whole document cannot be removed");
    const [parent, at] = this.#locate(path);
    const old = parent[at];
    if (Array.isArray(parent)) {
      parent.splice(at, 1);
      undo.push(() => parent.splice(at, 0, old));
    } else {
      delete parent[at];
      undo.push(() => assign(parent, at, old));
    }
  }

  #replace(path, value, undo) {
    const [parent, at] = this.#locate(path);
    const old = parent[at];
    assign(parent, at, value);
    undo.push(() => assign(parent, at, old));
  }

  #append(path, text, undo) {
    const [parent, at] = this.#locate(path);
    const old = parent[at];
    if (typeof old !== "string" || typeof text !== "string")
      throw new PatchError("append extends a string with a string");
    assign(parent, at, old + text);
    undo.push(() => assign(parent, at, parent[at].slice(0, old.length)));
  }
}

/** Equality of JSON values: true is not 1. */
export function equal(left, right) {
  if (Array.isArray(left) && Array.isArray(right))
    return left.length === right.length && left.every((value, at) => equal(value, right[at]));
  if (isObject(left) && isObject(right)) {
    const names = Object.keys(left);
    return (
      names.length === Object.keys(right).length &&
      names.every((name) => Object.hasOwn(right, name) && equal(left[name], right[name]))
    );
  }
  return left === right;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function own(object, name) {
  return Object.hasOwn(object, name) ? object[name] : undefined;
}

// A plain assignment to "__proto__" would set the prototype and no member.
function assign(container, at, value) {
  if (at === "__proto__")
    Object.defineProperty(container, at, { value, writable: true, enumerable: true, configurable: true });
  else container[at] = value;
}

function pointer(operation, member) {
  const path = own(operation, member);
  if (typeof path !== "string" || (path && !path.startsWith("/")) || BAD_ESCAPE.test(path))
    throw new PatchError(`${member} is not a JSON pointer: ${path}`);
  return path
    .split("/")
    .slice(1)
    .map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function given(operation) {
  if (!Object.hasOwn(operation, "value")) throw new PatchError("value is missing");
  return operation.value;
}

function key(container, token) {
  if (Array.isArray(container)) return index(token, container.length);
  if (isObject(container) && Object.hasOwn(container, token)) return token;
  throw new PatchError(`nothing at ${token}`);
}

function index(token, end) {
  if (!INDEX.test(token) || Number(token) >= end) throw new PatchError(`no index ${token}`);
  return Number(token);
}
