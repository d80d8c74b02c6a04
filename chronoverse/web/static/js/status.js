// The head of the page: what became of the job so far, and whether we still hear of it.

import { $, say } from "./dom.js";
import { ended, lines, outcome, span } from "./format.js";

//: Milliseconds that a connection may be gone before the page says so: most are back by then.
const QUIET_MS = 700;

let job = null;
let last = 0;
let lost = 0;

/** Shows a job's state, as the service or its stream tells it, and the log's last number. */
export function showJob(state, number) {
  const news = state.status !== job?.status;
  job = { ...job, ...state };
  last = number;
  const badge = $("badge");
  badge.hidden = false;
  badge.dataset.status = job.status;
  if (badge.textContent !== outcome(job)) badge.textContent = outcome(job);
  if (news) {
    document.title = `${outcome(job)} · ${$("name").textContent} · Chronoverse`;
    say(`The job is ${outcome(job)}`);
  }
  tick();
}

export function showLast(number) {
  last = number;
}

/** The connection is gone, or back. */
export function showLink(there) {
  clearTimeout(lost);
  lost = 0;
  if (there) showTrouble(null);
  else if ($("link").hidden) lost = setTimeout(() => showTrouble("reconnecting…"), QUIET_MS);
}

/** What keeps the log from going on, in the head; null for nothing. */
export function showTrouble(text) {
  $("link").hidden = text === null;
  $("link").textContent = text ?? "";
  if (text !== null) say(text);
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
