// Numbers and times in words.

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false,
});
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
const number = new Intl.NumberFormat("en-GB");

/** 12 ms, 1.4 s, 2 m 05 s, 3 h 12 m, 4 d 6 h. */
export function duration(ms) {
  if (ms === null || Number.isNaN(ms)) return "";
  if (ms < 0) ms = 0;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 59.95) return `${s.toFixed(1)} s`;
  const [d, h, m, left] = [
    Math.floor(s / 86400),
    Math.floor(s / 3600) % 24,
    Math.floor(s / 60) % 60,
    Math.floor(s % 60),
  ];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${String(m).padStart(2, "0")} m`;
  return `${m} m ${String(left).padStart(2, "0")} s`;
}

/** The clock time, with the day where it is not today. */
export function moment(time) {
  const at = new Date(time);
  if (!time || Number.isNaN(at.getTime())) return "";
  return at.toDateString() === new Date().toDateString() ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
}

export function exactly(time) {
  return time ? full.format(new Date(time)) : "";
}

export const count = (value) => number.format(value ?? 0);

export function bytes(size) {
  if (size < 1024) return `${size} B`;
  if (size < 1024 ** 2) return `${(size / 1024).toFixed(1)} KiB`;
  return `${(size / 1024 ** 2).toFixed(1)} MiB`;
}

export function money(micros) {
  if (!micros) return "";
  const dollars = micros / 1e6;
  return `$${dollars.toFixed(dollars < 0.01 ? 5 : dollars < 1 ? 4 : 2)}`;
}

/** One line that tells inputs apart: the values of an object, without its names. */
export function brief(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value.slice(0, 200);
  if (typeof value !== "object") return String(value);
  const inside = Array.isArray(value) ? value : Object.values(value);
  return inside
    .slice(0, 8)
    .map((one) =>
      one !== null && typeof one === "object" ? (Array.isArray(one) ? `[${one.length}]` : "{…}") : brief(one),
    )
    .filter(Boolean)
    .join(", ")
    .slice(0, 200);
}
