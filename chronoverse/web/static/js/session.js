// The token, which is stored for this tab only, and authenticated requests.

import { retry } from "../client/history.js";
import { get as fetchJson } from "../client/request.js";
import { IDENTIFIER } from "./addresses.js";
import { button, make } from "./dom.js";
import { isDue, issuer, isValid, renew, revoke, SignedOut } from "./oidc.js";

export { isTransient, refusal, Refused } from "../client/request.js";

//: Keys of the tab's storage: the token, the data for renewing it, and where the reader was when the sign-in started.
const KEY = "chronoverse.token";
const SESSION = "chronoverse.session";
const RETURN = "chronoverse.return";
//: The browser's last sign-out, as a random id shared by all tabs; and in each tab, the last one before its token arrived.
const SIGNED_OUT = "chronoverse.signed-out";

//: Expected refusals, such as "no such job", have status 200. Browsers log other statuses as errors.
const QUIET = { Prefer: "status=200" };

const channel = new BroadcastChannel("chronoverse");
let signingIn = null;
//: Called when another tab's token arrives: for the dialog, and for `hear`.
let cameIn = () => {};
let heard = () => {};
let renewing = null;

const lastSignOut = () => localStorage.getItem(SIGNED_OUT) ?? "";
const session = () => JSON.parse(sessionStorage.getItem(SESSION));

/** The token, or null. If the reader has signed out in another tab, discards it here and reloads the page. */
export function token() {
  if (sessionStorage.getItem(KEY) !== null && (sessionStorage.getItem(SIGNED_OUT) ?? "") !== lastSignOut()) {
    forget();
    location.reload();
  }
  return sessionStorage.getItem(KEY);
}

export const isRenewed = () => session() !== null;

/** Stores the token and the data for renewing it; null for a pasted token. */
function keep(value, renewal) {
  sessionStorage.setItem(KEY, value);
  if (lastSignOut()) sessionStorage.setItem(SIGNED_OUT, lastSignOut());
  if (renewal) sessionStorage.setItem(SESSION, JSON.stringify(renewal));
  else sessionStorage.removeItem(SESSION);
}

function forget() {
  for (const key of [KEY, SESSION, SIGNED_OUT]) sessionStorage.removeItem(key);
}

const tell = () => channel.postMessage({ token: token(), session: session() });

/** The token for requests, renewed before it expires and after a refusal of `used`; or else the reader signs in. */
export async function currentToken(refused, used) {
  if (refused && token() && used !== token()) return token();
  const current = session();
  if (!current) {
    // With a proxy in front of the service that signs readers in (docs/tokens.md), the token is only a placeholder.
    const pasted = token() === "proxy" ? "Signed out. Reload the page to sign in again." : "Token invalid or expired. Paste another.";
    if (refused) await signIn(issuer ? "Token invalid or expired." : pasted);
  } else if (refused && isValid(current) && Date.now() - current.at < 10_000) {
    // Another new token would only be rejected again.
    await signIn(`The service rejected your sign-in: ${refused.message}.`);
  } else if (refused || isDue(current)) {
    renewing ??= renewOnce(current).finally(() => (renewing = null));
    // Until it expires, use the old token, so that an issuer that is down or slow delays nothing.
    if (refused || !isValid(current)) await renewing;
    else renewing.catch(() => {});
  }
  return token();
}

/** Refresh tokens can be single-use: only one tab at a time renews, after asking the others for their token. Throws IssuerAway. */
async function renewOnce(old) {
  try {
    await navigator.locks.request("chronoverse.renew", async () => {
      await hear();
      if (session()?.at !== old.at) return;
      const renewed = await renew(old);
      // The reader may have signed out in the meantime.
      if (session()?.at === old.at) keep(...renewed);
      else if (!token()) revoke(renewed[1]);
      tell();
    });
  } catch (error) {
    if (!(error instanceof SignedOut)) throw error;
    forget();
    await signIn(`Signed out: ${error.message}.`);
  }
}

export function signedIn(value, renewal) {
  keep(value, renewal);
  tell();
}

/** Where the reader was when the sign-in started; null if that is another tab. Can be read once. */
export function takeReturnAddress() {
  const address = sessionStorage.getItem(RETURN);
  sessionStorage.removeItem(RETURN);
  return address;
}

/** Stores the token of `#token=…`, and removes it from the address and the history, keeping the rest. True if there is one. */
function takeFromFragment() {
  const parts = location.hash.slice(1).split("&");
  const given = parts.find((part) => part.startsWith("token="));
  if (given === undefined) return false;
  const rest = parts.filter((part) => part !== given).join("&");
  history.replaceState(history.state, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  // Unlike decodeURIComponent, keeps an invalid escape.
  const value = new URLSearchParams(given).get("token");
  if (value) keep(value, null);
  return value !== "";
}

export function signOut() {
  const old = session();
  forget();
  localStorage.setItem(SIGNED_OUT, String(Math.random()));
  if (old) revoke(old);
}

/** Sends the token to other tabs on request, and adopts theirs if this tab has none, or an older one from the issuer. */
function listen() {
  channel.onmessage = ({ data }) => {
    if (data?.ask && token()) tell();
    const isNewer = session() && data?.session?.at > session().at;
    if (typeof data?.token !== "string" || (token() && !isNewer)) return;
    keep(data.token, data.session);
    heard();
    cameIn();
  };
}

async function hear() {
  channel.postMessage({ ask: true });
  await new Promise((done) => {
    heard = done;
    setTimeout(done, 150);
  });
}

export async function begin() {
  takeFromFragment();
  // A link with a token was opened in a page that is open already. Its contents and requests belong to the previous token.
  addEventListener("hashchange", () => takeFromFragment() && location.reload());
  listen();
  // Another tab has signed out, now or while this page was in the back/forward cache.
  addEventListener("storage", token);
  addEventListener("pageshow", token);
  if (!token()) await hear();
  if (!token()) await signIn(issuer ? "Sign in to read logs." : "Paste a token to read logs.", { isEmpty: true });
}

async function objection(value) {
  // Any workflow will do: a 404 means that the token is valid, but for another workflow.
  const workflow = [claims(value).workflows].flat().find((each) => IDENTIFIER.test(each)) ?? "any";
  try {
    await fetchJson(`/workflows/${workflow}/jobs?limit=1`, { token: value, headers: QUIET });
    return null;
  } catch (error) {
    if (error instanceof TypeError) return "Not a token.";
    const { message, status } = error;
    if (!status) return "The service is not responding. Try again.";
    if (status === 404) return null;
    return status === 401 ? `Token rejected: ${message}.` : `The service returned ${status}: ${message}.`;
  }
}

/**
 * Resolves to true once the reader has signed in, or to false if they cancel. Rejected requests wait for that, too.
 * `isEmpty`: nothing on the screen would be lost.
 */
export function signIn(why, { canCancel = false, isEmpty = false } = {}) {
  signingIn ??= new Promise((done) => {
    const reason = make("p", { role: "status" }, why);
    const form = make("form", "", reason);
    let isOver = false;
    const close = (isSignedIn) => {
      isOver = true;
      dialog.remove();
      signingIn = null;
      cameIn = () => {};
      done(isSignedIn);
    };
    if (issuer) form.append(issuerButton(isEmpty));
    else askForToken(form, reason, (value) => isOver || (keep(value, null), close(true)));
    cameIn = () => close(true);
    if (canCancel) form.append(button(() => close(false), "Cancel"));
    const dialog = make("dialog", { className: "sign-in", ariaLabel: "Sign in" }, form);
    dialog.addEventListener("cancel", (event) => (event.preventDefault(), canCancel && close(false)));
    document.body.append(dialog);
    dialog.showModal();
  });
  return signingIn;
}

/** The sign-in button. Opens the issuer in this tab, or in another one if something would be lost here. */
function issuerButton(isEmpty) {
  const begins = () => {
    if (!isEmpty) return open("/ui/sign-in");
    sessionStorage.setItem(RETURN, location.href);
    return location.replace("/ui/sign-in");
  };
  return button(begins, `Sign in at ${new URL(issuer).host}`);
}

function askForToken(form, reason, done) {
  const input = make("input", { type: "password", autocomplete: "off", required: true, spellcheck: false });
  const submit = make("button", "", "Sign in");
  const command = make("code", "", "chronoverse token");
  const hint = make("p", "hint", "Ask your administrator for a token. On the service's machine, ", command, " may print one.");
  form.append(make("label", "", "Token ", input), submit, hint);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const value = input.value.trim().replace(/^Bearer\s+/i, "");
    submit.disabled = true;
    const problem = await objection(value);
    submit.disabled = false;
    if (!problem) return done(value);
    reason.textContent = problem;
    return input.select();
  });
}

export async function ask(path, { headers = {}, ...options } = {}) {
  return fetch(path, { ...options, cache: "no-store", headers: { ...headers, Authorization: `Bearer ${await currentToken()}` } });
}

/** Requests a JSON document. Gets a new token after a 401. */
export const get = (path, signal) => fetchJson(path, { token: currentToken, signal, headers: QUIET });

/** The result of `request()`, retried after transient errors. `failed(error, ms)` is called before each wait. */
export const persist = (request, { signal, failed } = {}) => retry(signal, request, { most: Infinity, failed });

export const following = {
  token: currentToken,
  heartbeat: Number(document.documentElement.dataset.heartbeat) || undefined,
  giveUpAfter: Infinity,
};

/** A token's claims, unverified: they only decide what the page offers, and the service what is allowed. */
export function claims(value = token()) {
  try {
    return JSON.parse(atob(value.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return {};
  }
}
