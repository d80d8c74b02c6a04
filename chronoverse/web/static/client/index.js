// @ts-check
// Reads job logs of a Chronoverse service, in browsers and in Node.js. README.md has examples, index.d.ts the types.

export { follow, followWorkflow, StreamError } from "./follow.js";
export { end, page, wait } from "./history.js";
export { get, Refused, Unreachable } from "./request.js";
export { deleteWatch, putWatch, testWatch, watches } from "./watches.js";
