// The page that signs in at the issuer, with an issuer that is away, refuses or lies. At the end it is honest.

import { deepEqual, equal, match } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";

const ISSUER = "http://issuer.example";
const OTHER = "http://other.example";
const PAGE = "http://127.0.0.1/ui/sign-in";
const metadata = { issuer: ISSUER, authorization_endpoint: `${ISSUER}/auth`, token_endpoint: `${ISSUER}/token` };
const begun = { verifier: "v".repeat(43), state: "the state", nonce: "the nonce" };
const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const now = Math.floor(Date.now() / 1000);
const claims = { iss: ISSUER, aud: "page", sub: "ann", nonce: begun.nonce, iat: now, exp: now + 60 };
/** The answer with a code's tokens. The page does not check their signature. */
const tokens = (changes) => Response.json({ access_token: "the token", token_type: "Bearer", expires_in: 60, id_token: `${encoded({ alg: "RS256" })}.${encoded({ ...claims, ...changes })}.c2ln` });
let loads = 0;

Object.assign(document.documentElement.dataset, { issuer: ISSUER, clientId: "page", scopes: "openid" });
Object.assign(globalThis, { isSecureContext: true, close() {} });

/** Opens the page after a sign-in was `begun`, with these answers of the issuer. Returns its text and address. */
async function opened(hash, answers, isBegun = true) {
  globalThis.location = new URL(PAGE + hash);
  globalThis.location.replace = (url) => (location.href = url);
  sessionStorage.removeItem("chronoverse.signing-in");
  if (isBegun) sessionStorage.setItem("chronoverse.signing-in", JSON.stringify(begun));
  globalThis.fetch = async (request) => {
    const url = request.url ?? String(request);
    const answer = await (url.endsWith("/token") ? answers.token : answers.metadata ?? Response.json(metadata));
    if (answer instanceof Error) throw answer;
    return Object.defineProperty(answer, "url", { value: url });
  };
  $("notice").replaceChildren();
  await import(`../../chronoverse/web/static/js/sign_in.js?${(loads += 1)}`);
  await until(() => $("notice").textContent || !location.href.startsWith(PAGE));
  return $("notice").textContent;
}

const CODE = "#code=abc&state=the+state";

test("an issuer that is away, refuses or lies signs nobody in, and the reader can try again", async () => {
  const failures = [
    ["", { metadata: new TypeError("fetch failed") }, `The issuer ${ISSUER} is not responding, or does not allow requests from http://127.0.0.1. Try again`],
    ["", { metadata: new Response("", { status: 503 }) }, `The issuer ${ISSUER} returned 503 at ${ISSUER}/.well-known/openid-configuration. Try again`],
    ["", { metadata: Response.json({ ...metadata, issuer: OTHER }) }, /^Invalid response from the issuer .*"issuer".* Try again$/],
    ["#error=access_denied&error_description=the+user+said+no&state=the+state", {}, `The issuer ${ISSUER} refused the sign-in: the user said no. Try again`],
    ["#code=abc&state=another", {}, /^Invalid response from the issuer .*"state".* Try again$/],
    [CODE, { token: tokens({ nonce: "another" }) }, /^Invalid response from the issuer .*"nonce".* Try again$/],
    [CODE, { token: tokens({ iss: OTHER }) }, /^Invalid response from the issuer .*"iss".* Try again$/],
    [CODE, { token: tokens({ aud: "another" }) }, /^Invalid response from the issuer .*"aud".* Try again$/],
  ];
  for (const [hash, answers, expected] of failures) {
    const said = await opened(hash, answers);
    if (expected instanceof RegExp) match(said, expected);
    else equal(said, expected);
    deepEqual(["token", "session"].map((key) => sessionStorage.getItem(`chronoverse.${key}`)), [null, null]);
  }
});

test("a code that this tab did not ask for is not exchanged, and does not stay in the address", async () => {
  equal(await opened("#code=stolen&state=another", {}, false), `Invalid response from the issuer ${ISSUER}: this tab did not start this sign-in. Try again`);
  equal(location.href, PAGE);
  $("notice").children.at(-1).click();
  await until(() => location.href.startsWith(`${ISSUER}/auth?`));
});

test("a sign-in begins at the issuer, and ends with its tokens", async () => {
  await opened("", {}, false);
  const asked = new URL(location.href);
  const { nonce, state } = JSON.parse(sessionStorage.getItem("chronoverse.signing-in"));
  deepEqual([asked.origin + asked.pathname, ...["client_id", "redirect_uri", "scope", "nonce", "state"].map((name) => asked.searchParams.get(name))], [`${ISSUER}/auth`, "page", PAGE, "openid", nonce, state]);
  equal(await opened(CODE, { token: tokens() }), "Signed in. You can close this tab. All workflows");
  equal(sessionStorage.getItem("chronoverse.token"), "the token");
});
