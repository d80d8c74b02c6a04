// The page that signs in at the issuer: authorization code with PKCE, as a public client. It redirects to the issuer,
// which redirects back with a code, and exchanges the code for tokens.

import * as oauth from "../vendor/oauth4webapi/index.js";
import { $, button, link } from "./dom.js";
import { audience, clientId, issuer, ISSUER_MS, requireBearer, scopes, sessionOf } from "./oidc.js";
import { signedIn, takeReturnAddress } from "./session.js";

const BEGUN = "chronoverse.signing-in";

const client = { client_id: clientId, [oauth.clockTolerance]: 600 };
const redirectUri = location.origin + location.pathname;

const options = () => ({
  signal: AbortSignal.timeout(ISSUER_MS),
  // The settings allow this only for an issuer on the same machine.
  [oauth.allowInsecureRequests]: issuer.startsWith("http://"),
});

async function discover() {
  const url = new URL(issuer);
  return oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, options()));
}

async function begin() {
  if (!isSecureContext) throw new Error("signing in requires HTTPS");
  const server = await discover();
  const begun = { verifier: oauth.generateRandomCodeVerifier(), state: oauth.generateRandomState(), nonce: oauth.generateRandomNonce() };
  sessionStorage.setItem(BEGUN, JSON.stringify(begun));
  const url = new URL(server.authorization_endpoint);
  const parameters = {
    client_id: clientId,
    redirect_uri: redirectUri,
    response_type: "code",
    scope: scopes,
    code_challenge: await oauth.calculatePKCECodeChallenge(begun.verifier),
    code_challenge_method: "S256",
    state: begun.state,
    nonce: begun.nonce,
    ...(audience && { audience }),
    // The code then comes after a #, which browsers never send to a server.
    ...(server.response_modes_supported?.includes("fragment") && { response_mode: "fragment" }),
  };
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  location.replace(url);
}

/** Exchanges the issuer's response for tokens, and returns to where the reader was. */
async function finish(parameters) {
  const begun = JSON.parse(sessionStorage.getItem(BEGUN));
  sessionStorage.removeItem(BEGUN);
  history.replaceState(null, "", location.pathname);
  if (!begun) throw new Error("this tab did not start this sign-in");
  const server = await discover();
  const accepted = oauth.validateAuthResponse(server, client, parameters, begun.state);
  const at = Date.now();
  const response = await oauth.authorizationCodeGrantRequest(
    server, client, oauth.None(), accepted, redirectUri, begun.verifier, options(),
  );
  const answer = await oauth.processAuthorizationCodeResponse(server, client, response, { expectedNonce: begun.nonce });
  requireBearer(answer);
  signedIn(answer.access_token, sessionOf(answer, server, at));
  const address = takeReturnAddress();
  if (address) return location.replace(address);
  // This tab was opened by a page, which has the tokens now.
  close();
  return $("notice").replaceChildren("Signed in. You can close this tab. ", link("/", "All workflows"));
}

function sentence(error) {
  if (error instanceof oauth.AuthorizationResponseError || error instanceof oauth.ResponseBodyError) {
    return `The issuer ${issuer} refused the sign-in: ${error.error_description ?? error.error}.`;
  }
  // Errors of failed requests have no code.
  if (error.name === "TimeoutError" || (error instanceof TypeError && !error.code)) {
    return `The issuer ${issuer} is not responding, or does not allow requests from ${location.origin}.`;
  }
  const { status, url } = error.cause ?? {};
  if (status >= 400) return `The issuer ${issuer} returned ${status} at ${url}.`;
  return `Invalid response from the issuer ${issuer}: ${error.message}.`;
}

function show(error) {
  $("notice").replaceChildren(sentence(error), " ", button(() => begin().catch(show), "Try again"));
}

document.title = "Sign in · Chronoverse";
const answer = new URLSearchParams(location.hash.slice(1) || location.search);
(answer.has("code") || answer.has("error") ? finish(answer) : begin()).catch(show);
