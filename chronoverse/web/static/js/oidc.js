// A sign-in at an issuer (OpenID Connect): how the page renews its tokens, and ends them. sign_in.js gets the first ones.

import { Unreachable } from "../client/request.js";

//: Milliseconds after which an unanswered request to the issuer is aborted.
export const ISSUER_MS = 15_000;
//: Seconds that a token is used if the issuer does not say how long it lives.
const DEFAULT_SECONDS = 300;
//: A token is renewed this long before its end, in milliseconds, or when a quarter of its life is left.
const EARLY_MS = 60_000;

/** What the settings say: the issuer, the page's client there, the scopes, and the audience. They may be empty. */
export const { issuer, clientId, scopes, audience } = document.documentElement.dataset;

/** The issuer does not answer. A later attempt may succeed. */
export class IssuerAway extends Unreachable {
  name = "IssuerAway";
}

/** The sign-in is over. The message says why. */
export class SignedOut extends Error {
  name = "SignedOut";
}

/** Throws SignedOut for a token that is bound to a key, such as DPoP's. */
export function requireBearer({ token_type = "Bearer" }) {
  if (token_type.toLowerCase() !== "bearer") throw new SignedOut(`the issuer's token has the type ${token_type}, and only Bearer can be used`);
}

/** What renews a token, to be stored: from the issuer's answer to a request of the time `at`, and from its metadata or
 * from the session before. Times are those of this machine, so that it does not matter whether its clock is right. */
export function sessionOf(answer, { token_endpoint, revocation_endpoint, refresh }, at) {
  // The times in a token are whole seconds.
  const until = at + ((answer.expires_in ?? DEFAULT_SECONDS) - 1) * 1000;
  return { refresh: answer.refresh_token ?? refresh, token_endpoint, revocation_endpoint, at, until };
}

/** Whether the session's token is still valid. The clock may have been set back. */
export const isValid = ({ at, until }) => at <= Date.now() && Date.now() < until;

/** Whether it is time for another token. */
export function isDue(session) {
  const early = session.refresh ? Math.min(EARLY_MS, (session.until - session.at) / 4) : 0;
  return !isValid({ ...session, until: session.until - early });
}

const send = (endpoint, values, options) =>
  fetch(endpoint, {
    method: "POST",
    body: new URLSearchParams({ ...values, client_id: clientId }),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    ...options,
  });

/** Gets another token: `[token, session]`. Throws SignedOut or IssuerAway. */
export async function renew(session) {
  if (!session.refresh) throw new SignedOut("the sign-in has expired");
  const at = Date.now();
  let response;
  let answer;
  try {
    const values = { grant_type: "refresh_token", refresh_token: session.refresh };
    response = await send(session.token_endpoint, values, { signal: AbortSignal.timeout(ISSUER_MS) });
    answer = await response.json();
  } catch (error) {
    throw new IssuerAway(`The issuer ${issuer} does not answer.`, { cause: error });
  }
  if (response.status >= 500 || response.status === 429) throw new IssuerAway(`The issuer ${issuer} answers ${response.status}.`);
  if (!response.ok) throw new SignedOut(`the issuer says: ${answer?.error_description ?? answer?.error ?? response.status}`);
  if (typeof answer?.access_token !== "string") throw new SignedOut("the issuer's answer has no token");
  requireBearer(answer);
  return [answer.access_token, sessionOf(answer, session, at)];
}

/** Tells the issuer that the session is over, also while the page goes. Nothing depends on the answer. */
export function revoke({ refresh, revocation_endpoint }) {
  if (!refresh || !revocation_endpoint) return;
  send(revocation_endpoint, { token: refresh, token_type_hint: "refresh_token" }, { keepalive: true }).catch(() => {});
}
