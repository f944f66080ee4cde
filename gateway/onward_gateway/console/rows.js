// A long list of which only the visible rows are in the page. One focus stop: arrows move, Enter opens.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";

const SPARE = 8;

/**
 * @param role "grid" or "treegrid".
 * @param items All of them.
 * @param height Of one row, in pixels.
 * @param row (item, index) => the cells of one row.
 * @param attributes (item, index) => more attributes of a row.
 * @param active The index of the active row, -1 for none.
 * @param follow Whether to keep the end in sight while the reader is there.
 */
export function Rows({
  role,
  label,
  items,
  height,
  header,
  row,
  attributes,
  active,
  onActive,
  onOpen,
  onKey,
  onEnd,
  follow,
  keyOf,
  id,
}) {
  const box = useRef(null);
  const [view, setView] = useState({ top: 0, height: 800 });
  const atEnd = useRef(true);
  const headed = header ? 1 : 0;

  useLayoutEffect(() => {
    const node = box.current;
    const measure = () => setView({ top: node.scrollTop, height: node.clientHeight });
    const resized = new ResizeObserver(measure);
    resized.observe(node);
    measure();
    return () => resized.disconnect();
  }, []);

  useLayoutEffect(() => {
    const node = box.current;
    if (follow && atEnd.current) node.scrollTop = node.scrollHeight;
  }, [follow, items.length]);

  useEffect(() => {
    if (active < 0) return;
    const node = box.current;
    const top = active * height;
    const room = node.clientHeight - headed * height;
    if (top < node.scrollTop) node.scrollTop = top;
    else if (top + height > node.scrollTop + room) node.scrollTop = top + height - room;
  }, [active]);

  const first = Math.max(0, Math.floor(view.top / height) - SPARE);
  const last = Math.min(items.length, Math.ceil((view.top + view.height) / height) + SPARE);
  useEffect(() => {
    if (last >= items.length) onEnd?.();
  }, [last, items.length]);

  function scrolled() {
    const node = box.current;
    atEnd.current = node.scrollTop + node.clientHeight >= node.scrollHeight - height;
    setView({ top: node.scrollTop, height: node.clientHeight });
  }

  function key(event) {
    if (event.target !== box.current || event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(view.height / height) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps) onActive(Math.max(0, Math.min(items.length - 1, active + steps[event.key])));
    else if (event.key === "Enter" && active >= 0) onOpen?.(active);
    else if (!onKey?.(event, active)) return;
    event.preventDefault();
  }

  const shown = [];
  for (let index = first; index < last; index++) {
    const item = items[index];
    shown.push(
      html`<div
        key=${keyOf(item)}
        id="${id}-${index}"
        role="row"
        class="row ${index === active ? "active" : ""}"
        style=${{ top: `${index * height}px`, height: `${height}px` }}
        aria-rowindex=${index + 1 + headed}
        onClick=${() => onActive(index, true)}
        ...${attributes?.(item, index)}
      >
        ${row(item, index)}
      </div>`,
    );
  }
  return html`<div
    class="rows"
    ref=${box}
    role=${role}
    aria-label=${label}
    aria-rowcount=${items.length + headed}
    aria-activedescendant=${active >= first && active < last ? `${id}-${active}` : undefined}
    tabindex="0"
    onScroll=${scrolled}
    onKeyDown=${key}
  >
    ${header && html`<div class="row head" role="row" aria-rowindex="1" style=${{ height: `${height}px` }}>${header}</div>`}
    <div class="rows-all" role="rowgroup" style=${{ height: `${items.length * height}px` }}>${shown}</div>
  </div>`;
}
