// The page of a completed job whose groups are folded.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { events, until } from "./document.mjs";
import { line, open, routes, rows } from "./job_page.mjs";

const lines = ["::group::Install", "one", "two", "::endgroup::", "done"].map((message, index) => line(index + 1, message));
const page = (logs) => Response.json({ logs, cursor: null }, { headers: { "Last-Event-ID": "5" } });
Object.assign(routes, {
  "": () => Response.json({ id: "j", workflow_id: "w", status: "COMPLETED", exit_code: 0, first_sequence_num: 1, last_sequence_num: 5 }),
  "/logs": () => page(lines),
  "/logs/search": () => page(lines.filter(({ message }) => message.startsWith("::"))),
});
await open();
const shown = () => rows().map(({ dataset }) => dataset.number);
const expanded = () => rows()[0].children.find(({ name }) => name === "button").ariaExpanded;

test("a jump to a line in a folded group opens the group", async () => {
  await until(() => shown().join() === "1,5");
  equal(expanded(), "false");
  location.hash = "#L3";
  events.dispatchEvent(new Event("hashchange"));
  await until(() => shown().join() === "1,2,3,5");
  equal(expanded(), "true");
  deepEqual(rows().filter(({ className }) => className.includes("current")).map(({ dataset }) => dataset.number), [3]);
});

test("a line that only says that nothing is wrong is no error", async () => {
  const { Errors, looksLikeError } = await import("../../chronoverse/web/static/js/filters.js");
  deepEqual(["0 errors, 0 errors", "0 errors, an error", "fine"].map(looksLikeError), [false, true, false]);
  equal(looksLikeError("\x1b[31merror"), true);
  // The service has checked the whole of a long line.
  deepEqual([2000, 2001].map((length) => new Errors("", {}, {}).criteria.accepts({ message: "x".repeat(length) })), [false, true]);
});
