// The page of a job that ended without output.

import { deepEqual } from "node:assert/strict";
import { test } from "node:test";

import { $, events, until } from "./document.mjs";
import { open, routes } from "./job_page.mjs";

Object.assign(routes, {
  "": () => Response.json({ id: "j", workflow_id: "w", status: "COMPLETED", exit_code: 0, first_sequence_num: 1, last_sequence_num: 0 }),
  "/logs": () => Response.json({ logs: [], cursor: null }),
});
await open();

test("a link to a line of an empty log selects nothing", async () => {
  await until(() => $("notice").textContent === "No output.");
  location.hash = "#L9";
  events.dispatchEvent(new Event("hashchange"));
  await until(() => $("link").textContent === "no line 9: no output");
  deepEqual([location.hash, $("picked").hidden], ["#L9", true]);
});
