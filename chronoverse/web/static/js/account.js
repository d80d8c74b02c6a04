// The button that says whose token this tab has, what it is for and until when, and that lets the reader use another.

import { $, button, make } from "./dom.js";
import { icon } from "./icons.js";
import { issuer } from "./oidc.js";
import { claims, isRenewed, signIn, signOut } from "./session.js";

/** The patterns of workflows that the token names. */
export const namedWorkflows = () => [claims().workflows ?? []].flat().map(String);

/** The workflows that the token names, as text. Without that claim the service decides by another one. */
function scopeText() {
  if (claims().workflows === undefined) return "what the service allows";
  const named = namedWorkflows();
  if (named.includes("*")) return "all workflows";
  return named.length ? named.join(", ") : "no workflow";
}

/** Two buttons: for another token, where readers paste tokens, and to sign out. */
function tokenButtons() {
  const other = async () => (await signIn("Paste another token.", { canCancel: true })) && location.reload();
  const out = () => (signOut(), location.reload());
  return make("p", "choices", ...(issuer ? [] : [button(other, "Use another token")]), button(out, "Sign out"));
}

/** Where a list is empty: what the token is for, and the ways out. `hint()` says what to do, and `more()` are other elements. */
export function showEmpty(isEmpty, hint, more = () => []) {
  $("empty").hidden = !isEmpty;
  if (!isEmpty || $("empty").childElementCount) return;
  $("empty").append(make("p", "", `This token is for ${scopeText()}. ${hint()}`), ...more(), tokenButtons());
}

/** Puts the button at the end of the page's head. */
export function showAccount() {
  const { sub, exp } = claims();
  const opens = Object.assign(button(() => {}, icon("account")), { id: "account", title: "Account", ariaLabel: "Account" });
  opens.setAttribute("popovertarget", "accountbox");
  const facts = make("dl");
  const until = exp > 0 ? new Date(exp * 1000).toLocaleString() : "unknown";
  const end = isRenewed() ? ["Signed in at", issuer] : ["Until", until];
  for (const [name, value] of [["Token of", sub ?? "unknown"], ["For", scopeText()], end]) {
    facts.append(make("dt", "", name), make("dd", "", String(value)));
  }
  const box = make("div", "account", facts, tokenButtons());
  box.id = "accountbox";
  box.popover = "auto";
  document.querySelector("header").append(opens, box);
}
