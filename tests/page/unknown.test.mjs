// The page of an unknown address, which links to the workflow in it.

import { deepEqual } from "node:assert/strict";
import { test } from "node:test";

import { $ } from "./document.mjs";

test("an unknown address links to its workflow, if it has one", async () => {
  for (const [path, hrefs] of [["/ui/nope", []], ["/ui/workflows/a%20b/jobs", []], ["/ui/workflows/page/jobs", ["/ui/workflows/page"]]]) {
    globalThis.location = new URL(path, "http://127.0.0.1");
    await import(`../../chronoverse/web/static/js/unknown.js?${path}`);
    deepEqual($("ways").links.map(({ href }) => href), hrefs);
  }
});
