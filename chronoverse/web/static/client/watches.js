// @ts-check
// The watches of a workflow: what to report about its jobs, and where to send it.

import { call } from "./history.js";
import { workflowUrl } from "./request.js";

/** @type {(options: import("./index.js").WorkflowOptions, route?: string) => string} */
const urlOf = (options, route = "") => workflowUrl(options, `watches${route}`, {});

/** @type {typeof import("./index.js").watches} */
export const watches = async (options) => (await call(options, urlOf(options))).watches;

/** @type {typeof import("./index.js").putWatch} */
export const putWatch = (options, id, watch) => call(options, urlOf(options, `/${encodeURIComponent(id)}`), "PUT", watch);

/** @type {typeof import("./index.js").deleteWatch} */
export const deleteWatch = (options, id) => call(options, urlOf(options, `/${encodeURIComponent(id)}`), "DELETE");

/** @type {typeof import("./index.js").testWatch} */
export const testWatch = (options, id) => call(options, urlOf(options, `/${encodeURIComponent(id)}/test`), "POST");
