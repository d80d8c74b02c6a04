// The page of a running job without earlier runs, which is deleted.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";
import { line, open, routes, rows } from "./job_page.mjs";

let stream = null;
let isGone = false;
let refusals = 0;
Object.assign(routes, {
  "": () => Response.json({ id: "j", workflow_id: "w", status: "RUNNING", exit_code: null, first_sequence_num: 1, last_sequence_num: 1 }),
  "/logs": () => Response.json({ logs: [line(1)], cursor: null }),
  "/logs/new": () => Response.json({ status: 409, detail: "no good run", reason: "nothing-to-compare" }, { status: 409 }),
  "/events": () => {
    refusals += isGone;
    if (isGone) return Response.json({ status: 404, detail: "no such job" }, { status: 404 });
    const body = new ReadableStream({ start: (controller) => (stream = controller) });
    stream.enqueue(new TextEncoder().encode("event: connected\ndata: {}\nretry: 1\n\n"));
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
  },
});
await open();

test("without an earlier run, the button for new lines says why", async () => {
  await until(() => stream && rows().length);
  $("new").dispatchEvent(new Event("click"));
  await until(() => $("new").title === "No earlier run to compare with");
  equal($("new").ariaPressed, "false");
});

test("a deletion is told, and the lines stay", async () => {
  isGone = true;
  stream.enqueue(new TextEncoder().encode("event: error\ndata: the log is gone\n\n"));
  stream.close();
  await until(() => !$("link").hidden && $("link").textContent === "the log is gone");
  await until(() => refusals);
  await new Promise((done) => setTimeout(done, 50));
  equal($("notice").hidden, true);
  deepEqual(rows().map(({ dataset }) => dataset.number), [1]);
});
