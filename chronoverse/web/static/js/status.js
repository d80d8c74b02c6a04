// The head of the page: the job's status, and whether the page is connected.

import { $, announce } from "./dom.js";
import { ended, lines, outcome, span } from "./format.js";

//: Milliseconds that a connection may be lost before the page shows it. Most are back by then.
const GRACE_MS = 700;

let job = null;
let last = 0;
let lostTimer = 0;

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
  }
  tick();
}

export function showLast(number) {
  last = number;
}

/** Shows whether the page is connected. */
export function showConnection(isConnected) {
  clearTimeout(lostTimer);
  lostTimer = 0;
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
  if (start > 0 && stop >= start) facts.push(span(stop - start));
  facts.push(lines(last));
  if (job.dropped) facts.push(`${job.dropped} dropped`);
  if (job.attempt > 1) facts.push(`attempt ${job.attempt}`);
  const text = facts.join(" · ");
  if ($("facts").textContent !== text) $("facts").textContent = text;
}
setInterval(tick, 500);
