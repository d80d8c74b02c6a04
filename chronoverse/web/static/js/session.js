// The token, which is stored for this tab only, and requests that carry it.

import { Backoff, get as fetchJson, isTransient, pause } from "../client/request.js";
import { IDENTIFIER } from "./addresses.js";
import { button, make } from "./dom.js";
import { isDue, issuer, isValid, renew, revoke, SignedOut } from "./oidc.js";

export { refusal, Refused } from "../client/request.js";

const KEY = "chronoverse.token";
//: What renews the token, if it is the issuer's.
const SESSION = "chronoverse.session";
//: Where the reader was when the sign-in began.
const RETURN = "chronoverse.return";
//: The last sign-out of this browser, for all tabs: a name for it, and in each tab the one before its token came.
const SIGNED_OUT = "chronoverse.signed-out";
//: Milliseconds that a tab waits for another tab of the same browser to send its token.
const HANDOVER_MS = 150;
//: Milliseconds after which a token that is refused may be renewed. A newer one would be refused again.
const YOUNG_MS = 10_000;

//: Refusals that are ordinary answers, such as "no such job", come with the status 200. Browsers log others as errors.
const QUIET = { Prefer: "status=200" };

const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("chronoverse") : null;
let signingIn = null;
//: Called when the token of another tab comes: for the dialog, and for what waits for it.
let cameIn = () => {};
let heard = () => {};
let renewing = null;

const lastSignOut = () => localStorage.getItem(SIGNED_OUT) ?? "";
const session = () => JSON.parse(sessionStorage.getItem(SESSION));

/** The token, or null. If the reader has signed out in another tab, it is forgotten here, and the page begins again. */
export function token() {
  if (sessionStorage.getItem(KEY) !== null && (sessionStorage.getItem(SIGNED_OUT) ?? "") !== lastSignOut()) {
    forget();
    location.reload();
  }
  return sessionStorage.getItem(KEY);
}

/** Whether the token is renewed. */
export const isRenewed = () => session() !== null;

/** Stores the token and what renews it: null for a token that the reader has given. */
function keep(value, renewal) {
  sessionStorage.setItem(KEY, value);
  if (lastSignOut()) sessionStorage.setItem(SIGNED_OUT, lastSignOut());
  if (renewal) sessionStorage.setItem(SESSION, JSON.stringify(renewal));
  else sessionStorage.removeItem(SESSION);
}

function forget() {
  for (const key of [KEY, SESSION, SIGNED_OUT]) sessionStorage.removeItem(key);
}

const tell = () => channel?.postMessage({ token: token(), session: session() });

/** The token for requests. A token of the issuer's is renewed before its end, and when it was refused. When that cannot
 * be, the reader is asked to sign in. `used` is the token that was refused: there may be another by now. */
export async function currentToken(refused, used) {
  if (refused && token() && used !== token()) return token();
  const current = session();
  if (!current) {
    if (refused) await signIn(issuer ? "Token invalid or expired." : "Token invalid or expired. Paste another.");
  } else if (refused && isValid(current) && Date.now() - current.at < YOUNG_MS) {
    await signIn(`The service rejected your sign-in: ${refused.message}.`);
  } else if (refused || isDue(current)) {
    renewing ??= renewOnce(current).finally(() => (renewing = null));
    // Before its end, the token is used until there is another. An issuer that is away or slow delays nothing.
    if (refused || !isValid(current)) await renewing;
    else renewing.catch(() => {});
  }
  return token();
}

/** Renews the token, unless another tab has done that. A refresh token may be good for one use only, so one tab at a
 * time does it, and asks the others first. Throws IssuerAway. */
async function renewOnce(old) {
  try {
    await navigator.locks.request("chronoverse.renew", async () => {
      await hear();
      if (session()?.at !== old.at) return;
      const renewed = await renew(old);
      // The reader may have signed out meanwhile.
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

/** Stores what a sign-in has brought, for all tabs. */
export function signedIn(value, renewal) {
  keep(value, renewal);
  tell();
}

/** Where the reader was when the sign-in began, once; null if that is another tab. */
export function takeReturnAddress() {
  const address = sessionStorage.getItem(RETURN);
  sessionStorage.removeItem(RETURN);
  return address;
}

/** Stores the token of `#token=…`, and removes it from the address and the history. The rest stays. True if there is one. */
function takeFromFragment() {
  const parts = location.hash.slice(1).split("&");
  const given = parts.find((part) => part.startsWith("token="));
  if (given === undefined) return false;
  const rest = parts.filter((part) => part !== given).join("&");
  history.replaceState(history.state, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  const value = decodeURIComponent(given.slice("token=".length));
  if (value) keep(value, null);
  return value !== "";
}

/** Forgets the token, in this tab and in all others, also in those that are elsewhere and come back. */
export function signOut() {
  const old = session();
  forget();
  localStorage.setItem(SIGNED_OUT, String(Math.random()));
  if (old) revoke(old);
}

/** Sends the token to other tabs that ask, and takes theirs if this tab has none, or an older one of the issuer's. */
function listen() {
  if (!channel) return;
  channel.onmessage = ({ data }) => {
    if (data?.ask && token()) tell();
    const isNewer = session() && data?.session?.at > session().at;
    if (typeof data?.token !== "string" || (token() && !isNewer)) return;
    keep(data.token, data.session);
    heard();
    cameIn();
  };
}

/** Asks the other tabs for their token, and waits a moment, or until one comes. */
async function hear() {
  if (!channel) return;
  const moment = new Promise((done) => {
    heard = done;
    setTimeout(done, HANDOVER_MS);
  });
  channel.postMessage({ ask: true });
  await moment;
}

/** Gets a token before the first request. */
export async function begin() {
  takeFromFragment();
  // A link with a token was opened in a page that is open already. What it shows, and asks, is for the token before.
  addEventListener("hashchange", () => takeFromFragment() && location.reload());
  listen();
  // Another tab has signed out, now or while this page was in the browser's cache.
  addEventListener("storage", token);
  addEventListener("pageshow", token);
  if (!token()) await hear();
  if (!token()) await signIn(issuer ? "Sign in to read logs." : "Paste a token to read logs.", { isEmpty: true });
}

/** Why the service does not accept a token that was entered, as a sentence; null if it does. */
async function objection(value) {
  // Any workflow will do. A 404 says that the token is good, and that it is for another one.
  const workflow = [claims(value).workflows].flat().find((each) => IDENTIFIER.test(each)) ?? "any";
  try {
    await fetchJson(`/workflows/${workflow}/jobs?limit=1`, { token: value, headers: QUIET });
    return null;
  } catch (error) {
    if (error instanceof TypeError) return "Not a token.";
    const { message, status } = error;
    if (!status) return "The service does not answer. Try again.";
    if (status === 404) return null;
    return status === 401 ? `Token rejected: ${message}.` : `The service answers ${status}: ${message}.`;
  }
}

/** Asks the reader to sign in, or for a token, until the service accepts one. Requests that are refused meanwhile wait
 * for that, too. Resolves to true, or to false when the reader may cancel it and does. With `isEmpty` there is nothing
 * on the screen yet that would be lost. */
export function signIn(why, { canCancel = false, isEmpty = false } = {}) {
  signingIn ??= new Promise((done) => {
    const reason = make("p", "", why);
    reason.setAttribute("role", "status");
    const form = make("form", "", reason);
    const close = (isSignedIn) => {
      dialog.remove();
      signingIn = null;
      cameIn = () => {};
      done(isSignedIn);
    };
    if (issuer) form.append(issuerButton(isEmpty));
    else askForToken(form, reason, () => close(true));
    cameIn = () => close(true);
    if (canCancel) form.append(button(() => close(false), "Cancel"));
    const dialog = make("dialog", "sign-in", form);
    dialog.setAttribute("aria-label", "Sign in");
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      if (canCancel) close(false);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return signingIn;
}

/** The button that leads to the issuer: in this tab, or in another one if something would be lost here. */
function issuerButton(isEmpty) {
  const begins = () => {
    if (!isEmpty) return open("/ui/sign-in");
    sessionStorage.setItem(RETURN, location.href);
    return location.replace("/ui/sign-in");
  };
  return button(begins, `Sign in at ${new URL(issuer).host}`);
}

/** Adds a field for a token to the form. Calls `done` when the service accepts what was entered. */
function askForToken(form, reason, done) {
  const input = make("input");
  Object.assign(input, { type: "password", autocomplete: "off", required: true, spellcheck: false });
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
    if (problem) {
      reason.textContent = problem;
      return input.select();
    }
    keep(value, null);
    return done();
  });
}

/** Sends a request with the token. Resolves like `fetch`, whatever the status. */
export async function ask(path, { headers = {}, ...options } = {}) {
  const authorization = { Authorization: `Bearer ${await currentToken()}` };
  return fetch(path, { ...options, cache: "no-store", headers: { ...headers, ...authorization } });
}

/** Requests a JSON document. Resolves to it, the answer's headers and the number in `Last-Event-ID`. After a 401 it asks
 * for a new token. */
export const get = (path, signal) => fetchJson(path, { token: currentToken, signal, headers: QUIET });

/**
 * The result of `request()`, which is repeated while the service is busy or away, soon at first and then less often.
 * `failed(error, ms)` is called before each wait. Throws what another attempt would not change, and the signal's reason.
 */
export async function persist(request, { signal, failed = () => {} } = {}) {
  const backoff = new Backoff();
  for (;;) {
    try {
      return await request();
    } catch (error) {
      if (!isTransient(error)) throw error;
      backoff.failed();
      const ms = backoff.delay(error);
      failed(error, ms);
      await pause(ms, signal);
    }
  }
}

/** A token's claims, unverified. They are only for what the page offers. The service decides what is allowed. */
export function claims(value = token()) {
  try {
    return JSON.parse(atob(value.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return {};
  }
}
