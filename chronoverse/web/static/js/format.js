// Formats numbers, times and statuses for people.

export const STATUS = {
  PENDING: "Pending",
  RUNNING: "Running",
  COMPLETED: "Completed",
  FAILED: "Failed",
  CANCELED: "Canceled",
  LOST: "Lost",
};

export const ended = (status) => status !== "PENDING" && status !== "RUNNING";

const grouped = new Intl.NumberFormat("en-US");
export const count = (number) => grouped.format(number);

export const many = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** How a job ended, or its status, such as "Failed · exit 3" or "Completed". */
export function outcome(job) {
  const word = STATUS[job.status] ?? job.status;
  const showsExitCode = job.exit_code !== null && job.exit_code !== undefined && job.status === "FAILED";
  return showsExitCode ? `${word} · exit ${job.exit_code}` : word;
}

/** The milliseconds that a job took, or has run so far. Null if unknown. */
export function tookMs({ status, started_at: started, finished_at: finished }) {
  const start = Date.parse(started ?? "");
  const stop = ended(status) ? Date.parse(finished ?? "") : Date.now();
  return start > 0 && stop >= start ? stop - start : null;
}

const twoDigits = (number) => String(number).padStart(2, "0");
const timeOfDay = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

/** A duration in milliseconds as "37 ms", "0.3 s", "42 s", "3 min 07 s", "2 h 05 min" or "4 d 03 h". */
export function span(ms) {
  if (ms < 100) return `${Math.round(Math.max(0, ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const total = Math.floor(seconds);
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${twoDigits(total % 60)} s`;
  if (total < 86_400) return `${Math.floor(total / 3600)} h ${twoDigits(Math.floor(total / 60) % 60)} min`;
  return `${Math.floor(total / 86_400)} d ${twoDigits(Math.floor(total / 3600) % 24)} h`;
}

/** The time of day of an ISO 8601 time, in the reader's time zone. Empty for an invalid time. */
export function clock(iso) {
  const at = Date.parse(iso);
  return at ? timeOfDay.format(at) : "";
}

/** The time from `start` to `iso`, such as "+1:02:03.456". Empty if either is invalid. */
export function elapsed(iso, start) {
  const ms = Date.parse(iso) - Date.parse(start);
  if (Number.isNaN(ms) || Date.parse(iso) === 0) return "";
  const hours = Math.floor(Math.abs(ms) / 3_600_000);
  const minutes = new Date(Math.abs(ms)).toISOString().slice(14, 23);
  return `${ms < 0 ? "-" : "+"}${hours ? `${hours}:` : ""}${minutes}`;
}

/** The age of a time, such as "5 min" or "3 d". Empty for an invalid time. */
export function age(iso, now = Date.now()) {
  const minutes = Math.floor((now - Date.parse(iso)) / 60_000);
  if (Number.isNaN(minutes)) return "";
  if (minutes < 60) return `${Math.max(1, minutes)} min`;
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} d`;
}

/** How long ago a time was, such as "just now", "5 min ago" or "3 d ago". A date after 30 days. */
export function ago(iso, now = Date.now()) {
  const ms = now - Date.parse(iso);
  if (Number.isNaN(ms)) return "";
  if (ms < 60_000) return "just now";
  return ms < 30 * 86_400_000 ? `${age(iso, now)} ago` : new Date(iso).toLocaleDateString();
}
