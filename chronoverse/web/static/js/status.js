// The head of the page: the job's status, and whether the page is connected.

import { $, announce } from "./dom.js";
import { ago, ended, lines, outcome, span } from "./format.js";
import { hideRetry, showRetry } from "./trouble.js";

//: Milliseconds that a connection may be lost before the page shows it. Most are back by then.
const GRACE_MS = 700;
//: Milliseconds until the next attempt from which on a countdown is shown.
const RETRY_MS = 2000;

//: Milliseconds without a new line after which the page says how long it has been.
const QUIET_MS = 30_000;

let job = null;
let last = 0;
let lostTimer = 0;
let grewAt = 0;
let foot = () => {};
let forecast = () => null;

/** Has `show` called with what stands after the last line: how long a running job has been quiet, or how it ended. */
export function showFoot(show) {
  foot = show;
}

/** Has the head say when a running job usually ends: what `says(isRunning)` gives, or nothing if that is null. */
export function showForecast(says) {
  forecast = says;
}

/** Shows a job's state, from the service or from its stream, and the log's last number. */
export function showJob(state, number) {
  const isNew = state.status !== job?.status;
  job = { ...job, ...state };
  last = number;
  const badge = $("badge");
  badge.hidden = false;
  badge.dataset.status = job.status;
  if (badge.textContent !== outcome(job)) badge.textContent = outcome(job);
  if (isNew) {
    document.title = `${outcome(job)} · ${$("name").textContent} · Chronoverse`;
    announce(`The job is ${outcome(job)}`);
    document.querySelector("link[rel=icon]").href = `/ui/static/icon-${job.status.toLowerCase()}.svg`;
  }
  tick();
}

/** Shows the log's last number. `at` is the time of that line, if it is known. */
export function showLast(number, at = "") {
  grewAt = Date.parse(at) || grewAt;
  last = number;
}

/** Shows whether the page is connected. If not, after `error`, it connects again in `ms`, or when the reader wants it to. */
export function showConnection(isConnected, ms = 0, error = null) {
  clearTimeout(lostTimer);
  lostTimer = 0;
  if (isConnected) hideRetry();
  // The client tries again at once when the network is back.
  else if (ms > RETRY_MS) showRetry(ms, error, () => dispatchEvent(new Event("online")));
  if (isConnected) showTrouble(null);
  else if ($("link").hidden) lostTimer = setTimeout(() => showTrouble("reconnecting…"), GRACE_MS);
}

/** Shows why the log does not go on. Null hides it. */
export function showTrouble(text) {
  $("link").hidden = text === null;
  $("link").textContent = text ?? "";
  if (text !== null) announce(text);
}

function tick() {
  if (!job) return;
  const start = Date.parse(job.started_at ?? "");
  const stop = ended(job.status) ? Date.parse(job.finished_at ?? "") : Date.now();
  const facts = [];
  if (start > 0 && stop >= start) facts.push(`${ended(job.status) ? "after " : ""}${span(stop - start)}`);
  const end = forecast(job.status === "RUNNING");
  if (end) facts.push(end);
  if (start > 0) facts.push(`began ${ago(job.started_at)}`);
  facts.push(lines(last));
  if (job.dropped) facts.push(`${job.dropped} dropped`);
  if (job.attempt > 1) facts.push(`attempt ${job.attempt}`);
  const quiet = Date.now() - grewAt;
  if (job.status === "RUNNING") foot(grewAt && quiet > QUIET_MS ? `running · last line ${span(quiet)} ago` : "");
  else foot(ended(job.status) && start > 0 && stop >= start ? `${outcome(job)} ${facts[0]}` : "");
  const text = facts.join(" · ");
  $("facts").title = job.started_at ?? "";
  if ($("facts").textContent !== text) $("facts").textContent = text;
}
setInterval(tick, 500);
