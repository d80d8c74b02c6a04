// The texts on the card of a failed job.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";

const { causeText, reason, showSummary } = await import("../../chronoverse/web/static/js/summary.js");

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

const errorLine = line(121, "\x1b[31mE GatewayError: 409\x1b[0m");
const run = (cause, more = {}) => ({ job: { status: "FAILED", exit_code: 1, ...more }, cause, errors: { count: 0 } });

test("the cause links to its most telling line, not to the first line of its context", async () => {
  const summary = await shown({ from: 110, to: 131, kind: "error", line: errorLine });
  deepEqual(
    summary.links.map(({ href, dataset, textContent }) => [href, dataset.number, textContent]),
    [["#L121", 121, "121"]],
  );
  equal(summary.textContent, "121E GatewayError: 409");
  equal($("said").textContent, "Line 121 E GatewayError: 409");
});

test("a late answer does not replace that of a later request", async () => {
  const job = { workflow_id: "w", id: "j", status: "FAILED", exit_code: 1, last_sequence_num: 200 };
  const answers = [];
  globalThis.fetch = () => new Promise((done) => answers.push((message) => done(Response.json({ job, cause: { kind: "error", line: line(121, message) }, complete: true }))));
  const asked = [1, 2].map(() => showSummary("http://127.0.0.1/workflows/w/jobs/j", () => {}));
  await until(() => answers.length === 2);
  answers[1]("now");
  await asked[1];
  answers[0]("before");
  await asked[0];
  equal($("summary").textContent, "121now");
});

test("a cause with low confidence is only the most likely one", async () => {
  const summary = await shown({ from: 110, to: 131, kind: "error", confidence: "low", line: line(121, "no such branch") });
  equal(summary.textContent, "121Most likely causeno such branch");
});

test("without a cause, a failed job links to its last line, if it has any", async () => {
  const summary = await shown({ from: 171, to: 200, kind: "last", line: line(200, "bye") });
  deepEqual([summary.links[0].href, summary.textContent], ["#L200", "200Last linebye"]);
  await shown(null);
  equal($("gocause").dataset.number, "");
});

test("without an explanatory line, the exit code or the status explains the failure", () => {
  const last = { kind: "last", line: line(200, "bye") };
  const text = (...args) => reason(run(...args)).text;
  equal(text(null, { exit_code: 127 }), "Command not found (exit 127)");
  equal(text(last, { exit_code: 137 }), "Killed, most likely out of memory (exit 137)");
  equal(text(last, { exit_code: 137, labels: { reason: "OOMKilled" } }), "Out of memory (exit 137)");
  equal(text(null), "Failed without output");
  equal(text(null, { status: "LOST" }), "No sign of the runner");
  equal(reason(run(null, { exit_code: 127 })).note, "No output");
  equal(causeText(run(last, { status: "LOST" })), "No sign of the runner since line 200");
});

test("a cause that was found takes precedence over the exit code, and no text contradicts it", () => {
  const found = { kind: "error", confidence: "high", line: errorLine };
  const { text, line: said, note } = reason({ ...run(found, { exit_code: 127 }), errors: { count: 1 } });
  deepEqual([text, said.sequence_num, note], [undefined, 121, "Command not found (exit 127)"]);
  equal(reason({ ...run(found), errors: { count: 0 } }).note, null);
  // Unless it is only a guess.
  equal(reason({ ...run({ ...found, confidence: "low" }, { exit_code: 127 }), errors: { count: 1 } }).text, "Command not found (exit 127)");
  equal(reason(run({ kind: "last", line: line(200, "bye") })).note, "No line looks like an error");
});
