// OpenID Connect sessions: renewing and revoking tokens. sign_in.js gets the first ones.

import { Unreachable } from "../client/request.js";

//: Milliseconds after which an unanswered request to the issuer is aborted.
export const ISSUER_MS = 15_000;

/** From the settings: the issuer, the page's client id, the scopes, and the audience. Any may be empty. */
export const { issuer, clientId, scopes, audience } = document.documentElement.dataset;

export class IssuerAway extends Unreachable {
  name = "IssuerAway";
}

export class SignedOut extends Error {
  name = "SignedOut";
}

/** Throws SignedOut for tokens bound to a key, such as DPoP tokens. */
export function requireBearer({ token_type = "Bearer" }) {
  if (token_type.toLowerCase() !== "bearer") throw new SignedOut(`the issuer issued a token of type ${token_type}: only Bearer can be used`);
}

/** The data for renewing a token. All times are of this machine's clock, so it does not matter if that is wrong. */
export function sessionOf(answer, { token_endpoint, revocation_endpoint, refresh }, at) {
  // Times in a token are whole seconds. Issuers can omit its lifetime.
  const until = at + ((answer.expires_in ?? 300) - 1) * 1000;
  return { refresh: answer.refresh_token ?? refresh, token_endpoint, revocation_endpoint, at, until };
}

export const isValid = ({ at, until }) => at <= Date.now() && Date.now() < until;

/** Whether the token should be renewed: a minute before it expires, or in the last quarter of a shorter lifetime. */
export function isDue(session) {
  const early = session.refresh ? Math.min(60_000, (session.until - session.at) / 4) : 0;
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

/** Gets a new token: `[token, session]`. Throws SignedOut or IssuerAway. */
export async function renew(session) {
  if (!session.refresh) throw new SignedOut("the sign-in has expired");
  const at = Date.now();
  const values = { grant_type: "refresh_token", refresh_token: session.refresh };
  const away = (error) => Promise.reject(new IssuerAway(`The issuer ${issuer} is not responding.`, { cause: error }));
  const response = await send(session.token_endpoint, values, { signal: AbortSignal.timeout(ISSUER_MS) }).catch(away);
  // A proxy's error page is not JSON.
  const answer = await response.json().catch(() => undefined);
  if (response.status >= 500 || response.status === 429 || answer === undefined) throw new IssuerAway(`The issuer ${issuer} returned ${response.status}${answer === undefined ? " without JSON" : ""}.`);
  if (!response.ok) throw new SignedOut(`the issuer returned: ${answer?.error_description ?? answer?.error ?? response.status}`);
  if (typeof answer?.access_token !== "string") throw new SignedOut("the issuer's response has no token");
  requireBearer(answer);
  return [answer.access_token, sessionOf(answer, session, at)];
}

/** Revokes the session at the issuer, even while the page unloads. The response is ignored. */
export function revoke({ refresh, revocation_endpoint }) {
  if (!refresh || !revocation_endpoint) return;
  send(revocation_endpoint, { token: refresh, token_type_hint: "refresh_token" }, { keepalive: true }).catch(() => {});
}
