// The account button: shows whose token this tab uses, for what and until when, and lets the reader change it.

import { $, button, make, opener } from "./dom.js";
import { icon } from "./icons.js";
import { issuer } from "./oidc.js";
import { claims, isRenewed, signIn, signOut } from "./session.js";

export const namedWorkflows = () => [claims().workflows ?? []].flat().map(String);

/** Who is signed in, unless the token does not say it, and for which workflows, as sentences. */
export const signedInAs = () => `${claims().sub ? `Signed in as ${claims().sub}. ` : ""}This token is for ${scopeText()}. `;

/** The token's workflows as text. Without that claim, the service decides by another one. */
function scopeText() {
  if (claims().workflows === undefined) return "the workflows that the service allows";
  const named = namedWorkflows();
  if (named.includes("*")) return "all workflows";
  return named.length ? named.join(", ") : "no workflow";
}

function tokenButtons() {
  const other = async () => (await signIn("Paste another token.", { canCancel: true })) && location.reload();
  const out = () => (signOut(), location.reload());
  return make("p", "choices", ...(issuer ? [] : [button(other, "Use another token")]), button(out, "Sign out"));
}

/** A command that starts a first job, for an empty list. */
export const firstCommand = (workflow) => make("code", "", `chronoverse run --server ${location.origin} --workflow ${workflow} --job job-1 -- echo hello`);

/** Shows, for an empty list, what the token is for and what to do: the text `hint()` and the elements `more()`. */
export function showEmpty(isEmpty, hint, more = () => []) {
  $("empty").hidden = !isEmpty;
  if (!isEmpty || $("empty").childElementCount) return;
  $("empty").append(make("p", "", `${signedInAs()}${hint()}`), ...more(), tokenButtons());
}

export function showAccount() {
  const { sub, exp } = claims();
  const end = isRenewed() ? ["Signed in at", issuer] : ["Until", exp > 0 ? new Date(exp * 1000).toLocaleString() : "unknown"];
  const facts = [["Token of", String(sub ?? "unknown")], ["For", scopeText()], end].flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
  const box = make("div", { id: "accountbox", className: "account" }, make("dl", "", ...facts), tokenButtons());
  document.querySelector("header").append(opener(box, { id: "account", title: "Account", ariaLabel: "Account" }, icon("account")), box);
}
