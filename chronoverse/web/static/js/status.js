// The page header: the job's status and the connection's state. Also reports a running job's progress.

import { $, announce, make, timeElement } from "./dom.js";
import { ended, many, outcome, span, tookMs } from "./format.js";
import { outcomeElement, statusIcon } from "./state.js";
import { hideRetry, showRetry } from "./trouble.js";

const LOST = "reconnecting…";
const BUFFERED = "no data from the stream: if other pages load, a proxy buffers it. Disable response buffering there";

let job = null;
let last = 0;
let lostTimer = 0;
//: Consecutive connections that brought nothing.
let mute = 0;
let grewAt = 0;
//: The shortest time in ms from a line's timestamp to its arrival: above all, how far the runner's clock is behind.
let lag = Infinity;
let told = () => {};

/** Makes the page call `tell` every half second, with the text after the last line and a running job's duration in ms, or null. */
export function tellProgress(tell) {
  told = tell;
}

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

export function showLast(number, at = "") {
  grewAt = Date.parse(at) || grewAt;
  last = number;
}

/** Call this for each line of the live stream. */
export function showArrival(at) {
  const ms = Date.now() - Date.parse(at);
  if (ms < lag) lag = ms;
}

/** Shows that the connection is lost because of `error`. The page reconnects in `ms`, or when the reader asks for it. */
export function showLost(error, ms) {
  clearTimeout(lostTimer);
  // The client retries immediately when the network is back.
  if (ms > 2000) showRetry(ms, error, () => dispatchEvent(new Event("online")));
  mute = error.message.startsWith("no data") ? mute + 1 : 0;
  if (mute > 1) showTrouble(BUFFERED);
  // Most connections are restored by then.
  else if ($("link").hidden) lostTimer = setTimeout(() => showTrouble(LOST), 700);
}

/** Hides the message about the lost connection, and announces `text` if it was shown. */
export function hideLost(text = "") {
  clearTimeout(lostTimer);
  mute = 0;
  hideRetry();
  if (text && $("link").textContent === LOST) announce(text);
  showTrouble(null);
}

/** Shows why the log does not continue. Null hides it. */
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
  if (start > 0) facts.push(make("span", "", make("span", "wide", "started "), timeElement(job.started_at)));
  facts.push(make("span", "wide", many(last, "line")));
  if (job.dropped) facts.push(`${many(job.dropped, "line")} dropped`);
  if (job.attempt > 1) facts.push(`attempt ${job.attempt}`);
  const quiet = Date.now() - grewAt - (lag < Infinity ? lag : 0);
  if (job.status === "RUNNING") told(grewAt && quiet > 30_000 ? `Running · last line ${span(quiet)} ago` : "", took);
  else told(ended(job.status) && took !== null ? `${outcome(job)} after ${span(took)}` : "", null);
  const shown = make("span", "", ...facts.map((fact) => make("span", "", fact)));
  if ($("facts").textContent !== shown.textContent) $("facts").replaceChildren(...shown.childNodes);
}
setInterval(tick, 500);
