// In which runs a line was seen, in words.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";

const js = "../../chronoverse/web/static/js";
const { MORE_REQUESTS, pastOf, showSeen } = await import(`${js}/seen.js`);

const text = (said) => said.map((each) => each.textContent ?? each).join("");
const started = new Date(Date.now() - 3 * 86_400_000).toISOString();
const seen = (more) => ({ COMPLETED: 0, FAILED: 0, LOST: 0, looked_at: 17, without_shapes: 0, first_id: "old", first_sequence_num: 7, first_started_at: started, ...more });
const past = (of, verdict = null, baseline = null, kind = "error") => text(pastOf({ job: { workflow_id: "w", id: "j" }, cause: { kind, line: { seen: of } }, verdict, baseline }));

test("texts about a cause in earlier runs", () => {
  equal(past(seen({ FAILED: 3 })), "Seen in 3 of the last 17 runs, all of them failed; first 3 d ago in old");
  equal(past(seen({ FAILED: 1 })), "Seen in 1 of the last 17 runs, failed; first 3 d ago in old");
  equal(past(seen({ FAILED: 2, COMPLETED: 1, LOST: 1 })), "Seen in 4 of the last 17 runs, 1 good, 2 failed, 1 lost; first 3 d ago in old");
  equal(past(seen({ FAILED: 1, first_id: "j" })), "Not seen in the previous 16 runs");
  equal(past(seen({ FAILED: 2, first_id: "j" })), "Seen in 2 of the last 17 runs, all of them failed; first 3 d ago in j");
  equal(past(seen({ FAILED: 1, first_id: "j", looked_at: 2 })), "Not seen in the previous run");
  equal(past(seen({ FAILED: 1, first_id: "j", looked_at: 1 })), "");
  equal(past(seen({})), "Not seen in the previous 17 runs");
  equal(past(seen({ FAILED: 2, without_shapes: 2 })), "Seen in 2 of the last 17 runs, all of them failed; first 3 d ago in old; 2 runs could not be read");
  equal(past(seen({ FAILED: 2 }), { kind: "new" }), "New: no earlier run has this line");
  equal(past(seen({ FAILED: 2 }), { kind: "since", id: "r1" }, { label: "branch=main" }), "Every failure on main since r1 (2 runs)");
  equal(past(seen({ FAILED: 1 }), { kind: "since", id: "r1" }), "Every failure since r1");
  equal(past(seen({ FAILED: 2, LOST: 1 }), { kind: "since", id: "r1" }), "Every failure since r1 (3 runs)");
  equal(past(seen({ FAILED: 2 }), { kind: "recurring" }), "Flaky: 2 of the last 17 runs; first 3 d ago in old");
  equal(past(seen({ FAILED: 2 }), null, null, "last"), "");
  equal(text(pastOf({ job: {}, cause: null })), "");
});

test("only a line that stays picked is requested, until all runs are read, and no range of lines", async () => {
  const asked = [];
  const ends = { COMPLETED: 0, FAILED: 2, CANCELED: 0, LOST: 0 };
  globalThis.fetch = async (request) => {
    asked.push(new URL(request.url).pathname.split("/").at(-2));
    const isWhole = asked.length % 2 === 0;
    return Response.json({ looked_at: { ...ends, without_shapes: isWhole ? 0 : 1 }, seen: ends, first: { id: "old", sequence_num: 3, started_at: "" } });
  };
  const show = (from, to = from) => showSeen("http://127.0.0.1/workflows/w/jobs/j", "w", "j", { from, to });
  await Promise.all([show(1), show(2), show(3)]);
  deepEqual(asked, ["3", "3"]);
  deepEqual([$("seen").hidden, $("seen").textContent], [false, "Seen in 2 of the last 2 runs, all of them failed; first in old"]);
  await show(4, 5);
  deepEqual([$("seen").hidden, asked.length], [true, 2]);
  // Some runs can never be read.
  let requests = 0;
  globalThis.fetch = async () => ((requests += 1), Response.json({ looked_at: { ...ends, without_shapes: 1 }, seen: ends, first: { id: "old", sequence_num: 3, started_at: "" } }));
  await show(6);
  equal(requests, 1 + MORE_REQUESTS);
  // The answer about a line that was picked before comes last.
  const answers = [];
  globalThis.fetch = () => new Promise((done) => answers.push((id) => done(Response.json({ looked_at: { ...ends, without_shapes: 0 }, seen: ends, first: { id, sequence_num: 3, started_at: "" } }))));
  const before = show(7);
  await until(() => answers.length === 1);
  const now = show(8);
  await until(() => answers.length === 2);
  answers[1]("now");
  await now;
  answers[0]("before");
  await before;
  equal($("seen").textContent, "Seen in 2 of the last 2 runs, all of them failed; first in now");
  // Picking another line aborts the request, which would take up a connection that the lines of the jump need.
  let aborted = 0;
  globalThis.fetch = (_, { signal }) => new Promise((_, failed) => signal.addEventListener("abort", () => failed(new Error(++aborted))));
  const late = show(6);
  await new Promise((done) => setTimeout(done, 300));
  await showSeen("", "w", "j", null);
  await late;
  equal(aborted, 1);
  equal($("seen").hidden, true);
});
