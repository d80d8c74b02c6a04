// The page of a failed job whose reader acts before the cause is known.

import { equal } from "node:assert/strict";
import { test } from "node:test";

import { $, events, until } from "./document.mjs";
import { line, open, routes, rows } from "./job_page.mjs";

const LINES = 300;
const job = { id: "j", workflow_id: "w", status: "FAILED", exit_code: 1, first_sequence_num: 1, last_sequence_num: LINES };
const cause = { from: 150, to: 150, line: line(150), kind: "error", confidence: "high" };
const none = { count: 0, first: [] };
let answer = null;
Object.assign(routes, {
  "": () => Response.json(job),
  "/logs": (of) => {
    const after = Number(of.get("offset"));
    return Response.json({ logs: Array.from({ length: Math.min(Number(of.get("limit")), LINES - after) }, (_, index) => line(after + 1 + index)), cursor: null });
  },
  "/summary": () => new Promise((done) => (answer = () => done(Response.json({ job, cause, errors: none, new: none, compared_with: null, complete: true })))),
});
await open();

test("the cause is shown, but does not move the reader", async () => {
  await until(() => answer);
  events.dispatchEvent(new Event("wheel"));
  answer();
  await until(() => $("gocause").dataset.number === 150);
  equal(rows().some(({ className }) => className.includes("current")), false);
  equal(rows().some(({ dataset }) => dataset.number === 150), false);
});
