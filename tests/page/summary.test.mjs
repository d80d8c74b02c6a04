// What the page says below the head of a failed job.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $ } from "./document.mjs";

const { showSummary } = await import("../../chronoverse/web/static/js/summary.js");

/** Shows a summary with this `cause`, and returns the element. */
async function shown(cause, status = "FAILED") {
  const body = {
    job: { workflow_id: "w", id: "j", status, last_sequence_num: 200 },
    new: { count: 0, first: [] },
    errors: { count: 3, first: [{ sequence_num: 118 }] },
    cause,
    complete: true,
    verdict: null,
  };
  globalThis.fetch = async () => Response.json(body);
  await showSummary("http://127.0.0.1/workflows/w/jobs/j", () => {});
  return $("summary");
}

const line = (number, message) => ({ sequence_num: number, message, timestamp: "2026-03-03T10:00:05.123Z", stream: "stderr" });

test("the cause links to its most telling line, and not to the first of the lines around it", async () => {
  const summary = await shown({ from: 110, to: 131, kind: "error", line: line(121, "\x1b[31mE GatewayError: 409\x1b[0m") });
  deepEqual(
    summary.links.map(({ href, dataset, textContent }) => [href, dataset.number, textContent]),
    [
      ["#L121", 121, "E GatewayError: 409 line 121"],
      ["#L118", 118, "3 errors"],
    ],
  );
  equal(summary.textContent, "Why it failed: E GatewayError: 409 line 121 · 3 errors");
});

test("a cause with low confidence is only the most likely one", async () => {
  const summary = await shown({ from: 110, to: 131, kind: "error", confidence: "low", line: line(121, "no such branch") });
  equal(summary.textContent, "Most likely: no such branch line 121 · 3 errors");
});

test("without a cause, a failed job links to its last line", async () => {
  const summary = await shown({ from: 171, to: 200, kind: "last", line: line(200, "bye") });
  deepEqual([summary.links[0].href, summary.textContent], ["#L200", "Last line: bye line 200 · 3 errors"]);
});
