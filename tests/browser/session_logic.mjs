// The logic of session.js in Node.js, where a sign-out can happen at any point. Prints the observed values as JSON.
// Arguments: the directory of the page's modules, and the URL of an issuer that answers a renewal on request.

import { pathToFileURL } from "node:url";

const [modules, issuer] = process.argv.slice(2);

class Store {
  #values = new Map();
  getItem = (key) => this.#values.get(key) ?? null;
  setItem = (key, value) => this.#values.set(key, String(value));
  removeItem = (key) => this.#values.delete(key);
}
const events = new EventTarget();
let reloads = 0;
Object.assign(globalThis, {
  sessionStorage: new Store(),
  localStorage: new Store(),
  document: { documentElement: { dataset: { issuer, clientId: "page" } }, getElementById: () => null },
  location: { hash: "", pathname: "/", search: "", reload: () => (reloads += 1) },
  history: { replaceState: () => {} },
  addEventListener: events.addEventListener.bind(events),
});
Object.defineProperty(globalThis, "navigator", { value: { locks: { request: (_, work) => work() } } });

delete globalThis.BroadcastChannel;
const page = await import(pathToFileURL(`${modules}/session.js`));
const at = Date.now() - 100_000;
page.signedIn("old-token", {
  refresh: "old-refresh",
  token_endpoint: `${issuer}/token`,
  revocation_endpoint: `${issuer}/revoke`,
  at,
  until: Date.now() + 10_000,
});
// The token is due, so this starts a renewal. The reader signs out before the issuer answers.
const used = await page.currentToken();
await fetch(`${issuer}/asked`);
page.signOut();
const after = page.token();
await fetch(`${issuer}/answer`);
await fetch(`${issuer}/revoked`);
const later = page.token();
// Another tab signs out while this one has a token.
page.signedIn("another-token", null);
const again = page.token();
localStorage.setItem("chronoverse.signed-out", "by another tab");
const elsewhere = page.token();
// A request was rejected after its token was replaced: retry with the new one.
page.signedIn("new-token", { at: Date.now(), until: Date.now() + 10_000 });
const replaced = await page.currentToken(new page.Refused(401, "expired", 0), "another-token");
console.log(JSON.stringify({ used, after, later, again, elsewhere, reloads, replaced }));
process.exit();
