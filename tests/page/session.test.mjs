// The token of a tab: from the address, from other tabs, and renewed once by all of them.

import { deepEqual, equal, rejects } from "node:assert/strict";
import { test } from "node:test";

import { until } from "./document.mjs";

const said = [];
const addresses = [];
let channel;
let reloads = 0;
/** What the other tabs reply to each message of this tab, if anything. */
let reply = () => null;
globalThis.BroadcastChannel = class {
  constructor() {
    channel = this;
  }

  postMessage(data) {
    said.push(data);
    const answer = reply(data);
    if (answer) queueMicrotask(() => this.onmessage({ data: answer }));
  }
};
const kept = new Map();
Object.assign(globalThis, {
  localStorage: { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) },
  history: { state: null, replaceState: (_, __, address) => addresses.push(address) },
});
globalThis.location = Object.assign(new URL("http://127.0.0.1/ui/workflows/w?q=a#L5&token=%67iven%&x"), { reload: () => (reloads += 1) });
Object.defineProperty(globalThis, "navigator", { value: { locks: { request: (_, work) => work() } } });
const { isDue, renew } = await import("../../chronoverse/web/static/js/oidc.js");
const { begin, currentToken, isRenewed, Refused, signedIn, signIn, signOut, token } = await import("../../chronoverse/web/static/js/session.js");
const session = (at, until = Date.now() + 10_000) => ({ at, until, refresh: `refresh ${at}`, token_endpoint: "http://127.0.0.1/token" });


test("the token of a link does not stay in the address", async () => {
  await begin();
  deepEqual([token(), isRenewed(), addresses], ["given%", false, ["/ui/workflows/w?q=a#L5&x"]]);
});

test("another tab's token is adopted if it is newer, or if there is none", () => {
  signedIn("mine", session(5));
  for (const [other, from, adopted] of [["older", session(4), "mine"], ["same", session(5), "mine"], ["pasted", null, "mine"], ["newer", session(6), "newer"]]) {
    channel.onmessage({ data: { token: other, session: from } });
    equal(token(), adopted);
  }
  channel.onmessage({ data: { ask: true } });
  deepEqual(said.at(-1), { token: "newer", session: JSON.parse(sessionStorage.getItem("chronoverse.session")) });
  signedIn("pasted", null);
  equal(isRenewed(), false);
  const before = kept.get("chronoverse.signed-out");
  signOut();
  deepEqual([token(), kept.get("chronoverse.signed-out") !== before], [null, true]);
  channel.onmessage({ data: { ask: true } });
  channel.onmessage({ data: { token: "given", session: null } });
  deepEqual([token(), said.at(-1).token], ["given", "pasted"]);
});

test("a token is renewed a minute before its end, or in the last quarter of its lifetime if that is later", () => {
  const due = (age, life, refresh = "refresh") => isDue({ at: Date.now() - 1000 * age, until: Date.now() + 1000 * (life - age), refresh });
  const isDueAt = [[230, 300], [245, 300], [40, 60], [50, 60], [290, 300, null], [301, 300, null], [-9, 300]].map((row) => due(...row));
  deepEqual(isDueAt, [false, true, false, true, false, true, true]);
});

test("an issuer's unusable answer is named by its status, and does not sign out", async () => {
  for (const [body, status, said] of [["<h1>Oops</h1>", 503, "503 without JSON"], ["{}", 503, "503"], ["{}", 429, "429"], ["", 200, "200 without JSON"]]) {
    globalThis.fetch = async () => new Response(body, { status });
    await rejects(renew(session(1)), ({ name, message }) => name === "IssuerAway" && message.endsWith(` returned ${said}.`));
  }
});

test("a token that another tab has renewed is not renewed again", async () => {
  const asked = [];
  globalThis.fetch = async (url) => (asked.push(url), Response.json({ access_token: "renewed", expires_in: 300 }));
  const [now, old] = [Date.now(), session(Date.now() - 100_000, Date.now() - 1)];
  signedIn("old", old);
  reply = ({ ask }) => ask && { token: "theirs", session: session(now) };
  deepEqual([await currentToken(), asked], ["theirs", []]);
  reply = () => null;
  signedIn("old", old);
  deepEqual([await Promise.all([currentToken(), currentToken()]), asked], [["renewed", "renewed"], ["http://127.0.0.1/token"]]);
});

test("nothing restores a token after a sign-out, here or in another tab", async () => {
  const revoked = [];
  let answer = null;
  globalThis.fetch = async (url, { body }) => {
    if (url.endsWith("/revoke")) return revoked.push(body.get("token")), new Response();
    await new Promise((done) => (answer = done));
    return Response.json({ access_token: "renewed", refresh_token: "new refresh", expires_in: 300 });
  };
  signedIn("old", { ...session(Date.now() - 100_000), refresh: "old refresh", revocation_endpoint: "http://127.0.0.1/revoke" });
  // The token is due, so this starts a renewal. The reader signs out before the issuer answers.
  equal(await currentToken(), "old");
  await until(() => answer);
  signOut();
  deepEqual([token(), revoked], [null, ["old refresh"]]);
  answer();
  await until(() => revoked.length > 1);
  deepEqual([token(), revoked], [null, ["old refresh", "new refresh"]]);
  signedIn("another", null);
  equal(token(), "another");
  kept.set("chronoverse.signed-out", "by another tab");
  // Whatever requests the token first notices that, and reloads the page.
  deepEqual([token(), token(), reloads], [null, null, 1]);
  // A request was rejected after its token was replaced: it is sent again with the new one.
  signedIn("new", session(Date.now()));
  equal(await currentToken(new Refused(401, "expired", 0), "another"), "new");
});

test("a canceled sign-in changes nothing, even if its token was sent", async () => {
  for (const [isCanceled, kept] of [[true, "mine"], [false, "other"]]) {
    let answer = null;
    globalThis.fetch = () => new Promise((done) => (answer = () => done(Response.json({ jobs: [] }))));
    signedIn("mine", null);
    const signing = signIn("Paste another token.", { canCancel: true });
    const [form] = document.body.children.at(-1).children;
    const [, label, submit, , cancel] = form.children;
    label.children[1].value = "other";
    form.dispatchEvent(new Event("submit"));
    await until(() => answer);
    if (isCanceled) cancel.click();
    answer();
    deepEqual([await signing, await until(() => !submit.disabled), token()], [!isCanceled, undefined, kept]);
  }
});

test("a refused token is to be replaced, but the placeholder for a proxy's is not", async () => {
  for (const [mine, what] of [["pasted", "Paste another."], ["proxy", "Reload the page to sign in again."]]) {
    signedIn(mine, null);
    const current = currentToken(new Refused(401, "expired", 0), mine);
    const [form] = document.body.children.at(-1).children;
    equal(form.children[0].children[0].endsWith(what), true);
    signOut();
    channel.onmessage({ data: { token: "given", session: null } });
    equal(await current, "given");
  }
});
