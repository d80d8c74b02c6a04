// Who is asking: the token, kept for this tab alone, and requests made with it.

import { make } from "./dom.js";

const KEY = "chronoverse.token";
//: Milliseconds a new tab waits for another tab of the same person to hand its token over.
const HANDOVER_MS = 150;
//: Milliseconds after which an unanswered request for a page is given up.
const REQUEST_MS = 30_000;

const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("chronoverse") : null;
let asking = null;

export const token = () => sessionStorage.getItem(KEY);

/** An answer that is no 2xx: `status`, the problem's `detail`, and seconds to wait if it said so. */
export class Refused extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Takes `#token=…` out of the address, leaving the rest of the fragment, and out of the history. */
function takeFromFragment() {
  const parts = location.hash.slice(1).split("&");
  const given = parts.find((part) => part.startsWith("token="));
  if (given === undefined) return;
  const rest = parts.filter((part) => part !== given).join("&");
  history.replaceState(history.state, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  const value = decodeURIComponent(given.slice("token=".length));
  if (value) sessionStorage.setItem(KEY, value);
}

/** Lets other tabs have the token, and asks them for theirs where this one has none. */
async function share() {
  if (!channel) return;
  channel.onmessage = ({ data }) => {
    if (data?.ask && token()) channel.postMessage({ token: token() });
    if (typeof data?.token === "string" && !token()) sessionStorage.setItem(KEY, data.token);
  };
  if (token()) return;
  channel.postMessage({ ask: true });
  const deadline = Date.now() + HANDOVER_MS;
  while (!token() && Date.now() < deadline) await new Promise((done) => setTimeout(done, 10));
}

/** Finds the token before anything is asked for. */
export async function begin() {
  takeFromFragment();
  addEventListener("hashchange", takeFromFragment);
  await share();
  if (!token()) await signIn("Paste a token to read logs.");
}

/** Asks for a token until there is one. Everybody who is refused meanwhile waits for the same answer. */
export function signIn(why) {
  asking ??= new Promise((done) => {
    const input = make("input");
    Object.assign(input, { type: "password", autocomplete: "off", required: true, spellcheck: false });
    const form = make("form", "", make("p", "", why), make("label", "", "Token ", input), make("button", "", "Sign in"));
    const hint = make("p", "hint", "serve prints one when it starts; so does ", make("code", "", "chronoverse token"), ".");
    form.append(hint);
    const dialog = make("dialog", "sign-in", form);
    dialog.setAttribute("aria-label", "Sign in");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim().replace(/^Bearer\s+/i, ""));
      dialog.remove();
      asking = null;
      done();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** One request with the token, as `fetch` answers it, whatever the status. */
export function ask(path, { headers = {}, ...options } = {}) {
  return fetch(path, { ...options, cache: "no-store", headers: { ...headers, Authorization: `Bearer ${token()}` } });
}

/** What a refusal says. */
export async function refusal(response) {
  let detail = response.statusText;
  try {
    detail = (await response.json()).detail;
  } catch {
    // A proxy's own page: the status says enough.
  }
  return new Refused(response.status, detail, Number(response.headers.get("Retry-After")) || 0);
}

/** A JSON document and the number in `Last-Event-ID`, asked for again with a new token after a 401. */
export async function get(path, signal) {
  for (;;) {
    const limit = AbortSignal.timeout(REQUEST_MS);
    const response = await ask(path, { signal: signal ? AbortSignal.any([signal, limit]) : limit });
    if (response.ok) return { body: await response.json(), place: Number(response.headers.get("Last-Event-ID")) };
    const refused = await refusal(response);
    if (refused.status !== 401) throw refused;
    await signIn("The token is not accepted any more. Paste another.");
  }
}

/** The claims of the token, unchecked: what the page may offer, never what is allowed. */
export function claims() {
  try {
    return JSON.parse(atob(token().split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return {};
  }
}
