// The head of the page: the job's status, and whether the page is connected. And how far a running job is.

import { $, announce, make, timeElement } from "./dom.js";
import { ended, many, outcome, span, tookMs } from "./format.js";
import { outcomeElement, statusIcon } from "./state.js";
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
let told = () => {};

/**
 * Has `tell` called every half second, with what stands after the last line: how long a running job has been quiet, or how it
 * ended; and with how many milliseconds the job has run, or null if it does not run.
 */
export function tellProgress(tell) {
  told = tell;
}

/** Shows a job's state, from the service or from its stream, and the log's last number. */
export function showJob(state, number) {
  const isNew = state.status !== job?.status;
  job = { ...job, ...state };
  last = number;
  const badge = $("badge");
  badge.hidden = false;
  badge.dataset.status = job.status;
  if (badge.textContent !== outcome(job)) badge.replaceChildren(statusIcon(job.status), outcomeElement(job));
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
  const took = tookMs(job);
  const facts = [];
  if (took !== null) facts.push(span(took));
  if (start > 0) facts.push(timeElement(job.started_at));
  facts.push(make("span", "wide", many(last, "line")));
  if (job.dropped) facts.push(`${many(job.dropped, "line")} dropped`);
  if (job.attempt > 1) facts.push(`attempt ${job.attempt}`);
  const quiet = Date.now() - grewAt;
  if (job.status === "RUNNING") told(grewAt && quiet > QUIET_MS ? `Running · last line ${span(quiet)} ago` : "", took);
  else told(ended(job.status) && took !== null ? `${outcome(job)} after ${span(took)}` : "", null);
  const shown = make("span", "", ...facts.map((fact) => make("span", "", fact)));
  if ($("facts").textContent !== shown.textContent) $("facts").replaceChildren(...shown.childNodes);
}
setInterval(tick, 500);
