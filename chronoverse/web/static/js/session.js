// The token, which is stored for this tab only, and requests that carry it.

import { get as fetchJson, refusal } from "../client/request.js";
import { IDENTIFIER } from "./addresses.js";
import { make } from "./dom.js";

export { refusal, Refused } from "../client/request.js";

const KEY = "chronoverse.token";
//: Milliseconds that a new tab waits for another tab of the same browser to send its token.
const HANDOVER_MS = 150;
//: Milliseconds after which an unanswered request is aborted.
const REQUEST_MS = 30_000;

//: Refusals that are ordinary answers, such as "no such job", come with the status 200. Browsers log others as errors.
const QUIET = { Prefer: "status=200" };

const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("chronoverse") : null;
let signingIn = null;

export const token = () => sessionStorage.getItem(KEY);

/** The token for requests. After one was refused, the reader is asked for another. */
export async function currentToken(refused) {
  if (refused) await signIn("The token is not accepted any more. Paste another.");
  return token();
}

/** Stores the token of `#token=…`, and removes it from the address and the history. The rest stays. True if there is one. */
function takeFromFragment() {
  const parts = location.hash.slice(1).split("&");
  const given = parts.find((part) => part.startsWith("token="));
  if (given === undefined) return false;
  const rest = parts.filter((part) => part !== given).join("&");
  history.replaceState(history.state, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  const value = decodeURIComponent(given.slice("token=".length));
  if (value) sessionStorage.setItem(KEY, value);
  return value !== "";
}

/** Forgets the token, in this tab and in all others, so that no new tab gets it from one of them. */
export function signOut() {
  sessionStorage.removeItem(KEY);
  channel?.postMessage({ forget: true });
}

/** Sends the token to other tabs that ask, and asks them for theirs if this tab has none. */
async function shareToken() {
  if (!channel) return;
  channel.onmessage = ({ data }) => {
    if (data?.ask && token()) channel.postMessage({ token: token() });
    if (data?.forget && token()) {
      sessionStorage.removeItem(KEY);
      location.reload();
    }
    if (typeof data?.token === "string" && !token()) sessionStorage.setItem(KEY, data.token);
  };
  if (token()) return;
  channel.postMessage({ ask: true });
  const deadline = Date.now() + HANDOVER_MS;
  while (!token() && Date.now() < deadline) await new Promise((done) => setTimeout(done, 10));
}

/** Gets a token before the first request. */
export async function begin() {
  takeFromFragment();
  // A link with a token was opened in a page that is open already. What it shows, and asks, is for the token before.
  addEventListener("hashchange", () => takeFromFragment() && location.reload());
  await shareToken();
  if (!token()) await signIn("Paste a token to read logs.");
}

/** Why the service does not accept a token that was entered, as a sentence; null if it does. */
async function objection(value) {
  // Any workflow will do. A 404 says that the token is good, and that it is for another one.
  const workflow = [claims(value).workflows].flat().find((each) => IDENTIFIER.test(each)) ?? "any";
  const headers = new Headers(QUIET);
  try {
    headers.set("Authorization", `Bearer ${value}`);
  } catch {
    return "This is not a token.";
  }
  try {
    const options = { headers, cache: "no-store", signal: AbortSignal.timeout(REQUEST_MS) };
    const response = await fetch(`/workflows/${workflow}/jobs?limit=1`, options);
    if (response.ok || response.status === 404) return null;
    const { message, status } = await refusal(response);
    return status === 401 ? `The token is not accepted: ${message}.` : `The service answers ${status}: ${message}.`;
  } catch {
    return "The service does not answer. Try again.";
  }
}

/** Asks the reader for a token until the service accepts one. Requests that are refused meanwhile wait for that, too.
 * Resolves to true, or to false when the reader may cancel it and does. */
export function signIn(why, { canCancel = false } = {}) {
  signingIn ??= new Promise((done) => {
    const input = make("input");
    Object.assign(input, { type: "password", autocomplete: "off", required: true, spellcheck: false });
    const reason = make("p", "", why);
    reason.setAttribute("role", "status");
    const button = make("button", "", "Sign in");
    const form = make("form", "", reason, make("label", "", "Token ", input), button);
    const command = make("code", "", "chronoverse token");
    const hint = make("p", "hint", "Whoever operates the service gives you one. On its own machine, ", command, " may print one.");
    form.append(hint);
    const close = (isSignedIn) => {
      dialog.remove();
      signingIn = null;
      done(isSignedIn);
    };
    if (canCancel) {
      const cancel = make("button", "", "Cancel");
      cancel.type = "button";
      cancel.addEventListener("click", () => close(false));
      form.append(cancel);
    }
    const dialog = make("dialog", "sign-in", form);
    dialog.setAttribute("aria-label", "Sign in");
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      if (canCancel) close(false);
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const value = input.value.trim().replace(/^Bearer\s+/i, "");
      button.disabled = true;
      const problem = await objection(value);
      button.disabled = false;
      if (problem) {
        reason.textContent = problem;
        input.select();
        return;
      }
      sessionStorage.setItem(KEY, value);
      close(true);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return signingIn;
}

/** Sends a request with the token. Resolves like `fetch`, whatever the status. */
export function ask(path, { headers = {}, ...options } = {}) {
  return fetch(path, { ...options, cache: "no-store", headers: { ...headers, Authorization: `Bearer ${token()}` } });
}

/** Requests a JSON document. Resolves to it, the answer's headers and the number in `Last-Event-ID`. After a 401 it asks
 * for a new token. */
export const get = (path, signal) => fetchJson(path, { token: currentToken, signal, headers: QUIET });

/** A token's claims, unverified. They are only for what the page offers. The service decides what is allowed. */
export function claims(value = token()) {
  try {
    return JSON.parse(atob(value.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return {};
  }
}
