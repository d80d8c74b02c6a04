// The bar that reports errors of the service, with a countdown to the next attempt and a button to retry now.

import { announce, button, make } from "./dom.js";
import { IssuerAway } from "./oidc.js";
import { persist } from "./session.js";

const said = make("span", "");
const bar = make("aside", { className: "trouble", ariaLabel: "The service", hidden: true }, said, button(() => again?.(), "Retry now"));
let timer = 0;
let again = null;

/** What happened, as a sentence. Null: nothing yet. */
export function sentence(error) {
  if (error === null) return "Still waiting for the service.";
  if (error instanceof IssuerAway) return error.message;
  const { status, message } = error;
  if (!status) return "The service is not responding.";
  const who = status < 500 ? "The service, or a proxy in front of it," : "The service";
  return `${who} returned ${status}${message.endsWith(` returned ${status}`) ? "" : `: ${message.replace(/\.$/, "")}`}.`;
}

/** Announces the next attempt after `error` in `ms` milliseconds; without an error, that a response is late. The button calls `retry`. */
export function showRetry(ms, error, retry) {
  clearInterval(timer);
  again = retry;
  if (!bar.isConnected) document.querySelector("header").after(bar);
  const what = sentence(error);
  if (bar.hidden) announce(what);
  // A job page is revealed when its job has loaded, or at the latest now.
  document.body.classList.add("ready");
  bar.hidden = false;
  const until = Date.now() + ms;
  const tick = () => {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    said.textContent = `${what} ${seconds > 0 ? `Next attempt in ${seconds} s.` : error ? "Trying…" : ""}`;
  };
  tick();
  timer = setInterval(tick, 500);
}

export function hideRetry() {
  clearInterval(timer);
  bar.hidden = true;
}

/** The result of `request()`, which is retried while the service does not respond. */
export function untilAnswered(request) {
  return persist(request, { failed: (error, ms) => showRetry(ms, error, () => dispatchEvent(new Event("online"))) }).finally(hideRetry);
}
