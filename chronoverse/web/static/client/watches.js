// @ts-check
// The watches of a workflow: what to report about its jobs, and where to send it.

import { get, workflowUrl } from "./request.js";
import { retry } from "./history.js";

/** @type {(options: import("./index.js").WorkflowOptions, route: string, method?: string, body?: unknown) => Promise<any>} */
function ask(options, route, method = "GET", body) {
  const { token, signal } = options;
  const url = workflowUrl(options, `watches${route}`, {});
  const headers = { "Content-Type": "application/json" };
  const init = { method, body: body ? JSON.stringify(body) : undefined };
  return retry(signal, async () => (await get(url, { token, signal, headers }, init)).body);
}

/** @type {typeof import("./index.js").watches} */
export const watches = async (options) => (await ask(options, "")).watches;

/** @type {typeof import("./index.js").putWatch} */
export const putWatch = (options, id, watch) => ask(options, `/${encodeURIComponent(id)}`, "PUT", watch);

/** @type {typeof import("./index.js").deleteWatch} */
export const deleteWatch = (options, id) => ask(options, `/${encodeURIComponent(id)}`, "DELETE");

/** @type {typeof import("./index.js").testWatch} */
export const testWatch = (options, id) => ask(options, `/${encodeURIComponent(id)}/test`, "POST");
