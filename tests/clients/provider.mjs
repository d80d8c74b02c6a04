// An OpenID provider for tests: the certified package oidc-provider, with one public client and any user.
//
// It prints its address, and then a JSON line for each request: its target and its Referer. Standard input takes JSON
// lines that change it: {"ttl": 5, "claims": {"workflows": ["*"]}}. It ends when standard input does.

import { once } from "node:events";
import http from "node:http";
import readline from "node:readline";
import { generateKeyPairSync } from "node:crypto";
import Provider, { errors, interactionPolicy } from "oidc-provider";

const RESOURCE = "https://logs.example.com";

/** What can be changed: seconds that an access token lives, and the claims that it has beside the usual ones. */
const now = { ttl: 300, claims: { workflows: ["*"] }, ...JSON.parse(process.argv[2] ?? "{}") };

const server = http.createServer();
server.listen(Number(now.port ?? 0), "127.0.0.1");
await once(server, "listening");
const issuer = `http://127.0.0.1:${server.address().port}`;

const key = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" });
const page = (text) => `<!doctype html><title>Provider</title><link rel="icon" href="data:,">${text}`;
// Without this, a native client asks for consent each time.
const policy = interactionPolicy.base();
policy.get("consent").checks.remove("native_client_prompt");
const provider = new Provider(issuer, {
  interactions: { policy },
  clients: [
    {
      client_id: "page",
      // The redirect may then go to any port of this machine (RFC 8252 section 7.3).
      application_type: "native",
      token_endpoint_auth_method: "none",
      id_token_signed_response_alg: "ES256",
      grant_types: ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
      redirect_uris: ["http://127.0.0.1/ui/sign-in"],
    },
  ],
  jwks: { keys: [{ ...key, alg: "ES256", use: "sig", kid: `key-${Date.now()}` }] },
  cookies: { keys: ["a key for cookies of tests"] },
  scopes: ["openid", "offline_access"],
  clientBasedCORS: () => true,
  findAccount: (_, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  extraTokenClaims: () => now.claims,
  issueRefreshToken: (_, client) => client.grantTypeAllowed("refresh_token"),
  rotateRefreshToken: true,
  ttl: { AccessToken: () => now.ttl, IdToken: 300, RefreshToken: 3600, Grant: 3600, Session: 3600, Interaction: 600, DeviceCode: 300 },
  features: {
    devInteractions: { enabled: false },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => RESOURCE,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: "logs:read logs:write logs:admin",
        audience: "chronoverse",
        accessTokenTTL: now.ttl,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "ES256" } },
      }),
    },
    deviceFlow: {
      enabled: true,
      userCodeInputSource: (ctx, form) => void (ctx.body = page(`${form}<button form="op.deviceInputForm">Continue</button>`)),
      userCodeConfirmSource: (ctx, form) => void (ctx.body = page(`${form}<button form="op.deviceConfirmForm">Continue</button>`)),
      successSource: (ctx) => void (ctx.body = page("<p>Signed in.</p>")),
    },
  },
  // Everybody has agreed to everything.
  async loadExistingGrant(ctx) {
    const { client, session, params } = ctx.oidc;
    const id = session.grantIdFor(client.clientId);
    const found = id && (await provider.Grant.find(id));
    if (found) return found;
    const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope("openid offline_access");
    grant.addResourceScope(RESOURCE, "logs:read logs:write logs:admin");
    await grant.save();
    return grant;
  },
});
provider.on("server_error", (_, error) => console.error(error));

/** The form of a user's name, and what it leads to. There are no passwords. */
async function interact(request, response) {
  if (request.method === "GET") {
    response.setHeader("Content-Type", "text/html");
    return response.end(page(`<form method="post"><input name="user"><button>Sign in</button></form>`));
  }
  let body = "";
  for await (const chunk of request) body += chunk;
  const user = new URLSearchParams(body).get("user");
  const result = user ? { login: { accountId: user } } : { error: "access_denied", error_description: "the user said no" };
  return provider.interactionFinished(request, response, result);
}

const handle = provider.callback();
server.on("request", (request, response) => {
  console.log(JSON.stringify({ target: request.url, referer: request.headers.referer ?? null }));
  if (!request.url.startsWith("/interaction/")) return handle(request, response);
  return interact(request, response).catch((error) => {
    response.statusCode = error instanceof errors.SessionNotFound ? 400 : 500;
    response.end(String(error));
  });
});

console.log(issuer);
for await (const line of readline.createInterface({ input: process.stdin })) Object.assign(now, JSON.parse(line));
process.exit();
