// Numbers, times and words for people.

export const STATUS = {
  PENDING: "pending",
  RUNNING: "running",
  COMPLETED: "completed",
  FAILED: "failed",
  CANCELED: "cancelled",
  LOST: "lost",
};

export const ended = (status) => status !== "PENDING" && status !== "RUNNING";

const grouped = new Intl.NumberFormat("en-US");
export const count = (number) => grouped.format(number);
export const lines = (number) => `${count(number)} ${number === 1 ? "line" : "lines"}`;

/** "failed · exit 3", "completed". */
export function outcome(job) {
  const word = STATUS[job.status] ?? job.status;
  const told = job.exit_code !== null && job.exit_code !== undefined && job.status === "FAILED";
  return told ? `${word} · exit ${job.exit_code}` : word;
}

/** Milliseconds as "0.3 s", "42 s", "3 m 07 s", "2 h 05 m", "4 d 03 h". */
export function span(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${two(whole % 60)} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} m`;
  return `${Math.floor(whole / 86_400)} d ${two(Math.floor(whole / 3600) % 24)} h`;
}

/** The time of day of an ISO 8601 time, as the reader's clock has it; empty for what is none. */
export function clock(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime()) || date.getTime() === 0) return "";
  const two = (n) => String(n).padStart(2, "0");
  const ms = String(date.getMilliseconds()).padStart(3, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${ms}`;
}

/** The time since `start` as "+1:02:03.456". */
export function elapsed(iso, start) {
  const ms = Date.parse(iso) - Date.parse(start);
  if (Number.isNaN(ms) || Date.parse(iso) === 0) return "";
  const sign = ms < 0 ? "-" : "+";
  const all = Math.abs(ms);
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(all / 3_600_000);
  const minutes = Math.floor(all / 60_000) % 60;
  const rest = (all % 60_000) / 1000;
  const seconds = `${two(minutes)}:${rest.toFixed(3).padStart(6, "0")}`;
  return hours ? `${sign}${hours}:${seconds}` : `${sign}${seconds}`;
}

/** "just now", "5 min ago", a date. */
export function ago(iso, now = Date.now()) {
  const ms = now - Date.parse(iso);
  if (Number.isNaN(ms)) return "";
  if (ms < 60_000) return "just now";
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ago`;
  if (ms < 86_400_000) return `${Math.floor(ms / 3_600_000)} h ago`;
  return new Date(iso).toLocaleString();
}
