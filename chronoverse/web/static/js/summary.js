// What the page says below the head of a failed job: why it failed, how many lines are new, and how many look like errors.

import { againstLabels } from "./addresses.js";
import { $, announce, link, make } from "./dom.js";
import { ago, count } from "./format.js";
import { segmentElement } from "./row.js";
import { markup } from "./markup.js";
import { MORE_REQUESTS, showPast } from "./seen.js";
import { get } from "./session.js";
import { plain, segments } from "./text.js";

//: Bytes that are asked for. The page needs only the counts, the cause, and the first line of each kind.
const BYTES = 16_384;
//: Requests until the service has looked at all lines. Each takes up to 3 seconds.
const MAX_REQUESTS = 40;
//: Characters of a line that are shown.
const SHOWN = 200;

let asking = 0;

/** A link to a line, which has the line's number as `data-number`. */
export function linkToLine(number, ...children) {
  const element = link(`#L${number}`, ...children);
  element.dataset.number = number;
  return element;
}

/** How many lines of a kind there are, as a link to the first of them. While not all lines were looked at: how many so far. */
function amount({ count: all, first }, noun, skipped) {
  const found = all ?? first.reduce((sum, each) => sum + (each.repeated ?? 1), 0);
  const many = found - skipped;
  if (many < 1) return null;
  const text = `${count(many)} ${skipped ? "more " : ""}${noun}${many === 1 ? "" : "s"}${all === null ? " so far" : ""}`;
  return first.length ? linkToLine(first[0].sequence_num, text) : text;
}

/** A line's text, without markup and colours. */
export function code({ message }) {
  const text = make("code", "");
  for (const segment of segments(plain(message.slice(markup(message)?.skip ?? 0)).trim().slice(0, SHOWN), [])) text.append(segmentElement({ ...segment, link: undefined }));
  return text;
}

/** What is said of the cause, as elements. */
function reason({ job, cause }) {
  const { line, kind, confidence } = cause;
  const where = linkToLine(line.sequence_num, code(line), " ", make("span", "where", `line ${count(line.sequence_num)}`));
  if (kind !== "last") return [confidence === "low" ? "Most likely: " : "Why it failed: ", where];
  if (job.status !== "LOST") return ["Last line: ", where];
  const [at, before] = [new Date(line.timestamp), ago(line.timestamp)];
  const since = Number.isNaN(at.getTime()) ? "" : ` since ${before.includes("ago") ? `${at.toLocaleTimeString()} (${before})` : before}`;
  return [`No sign of the runner${since}: `, where];
}

function show(body) {
  const { job, cause, complete } = body;
  const last = job.last_sequence_num;
  const parts = cause ? [reason(body)] : [];
  const isNew = cause && cause.kind !== "last" ? 1 : 0;
  for (const part of [amount(body.new, "new line", isNew), amount(body.errors, "error", 0)]) if (part) parts.push([part]);
  if (!complete) {
    const none = body.new.first.length || body.errors.first.length ? "" : ": none so far";
    parts.push([`looked at ${count(last - body.scanned_to + 1)} of ${count(last)} lines${none}`]);
  } else if (body.errors.count === 0) {
    parts.push(["no line looks like an error"]);
  }
  $("summary").replaceChildren(...parts.flatMap((part, index) => (index ? [" · ", ...part] : part)));
  $("summary").hidden = !parts.length;
  showPast(body);
}

/**
 * Shows the summary, and asks again until the service has looked at all lines, and a few times more for all runs. `told(body)` is called for every answer.
 * When the summary cannot be had, what was shown stays.
 */
export async function showSummary(path, told) {
  const mine = (asking += 1);
  let more = MORE_REQUESTS;
  for (let requests = 0; requests < MAX_REQUESTS; requests += 1) {
    const body = await get(`${path}/summary?${new URLSearchParams([["bytes", BYTES], ...againstLabels()])}`).then((answer) => answer.body, () => null);
    if (!body || mine !== asking) return;
    show(body);
    told(body);
    if (body.complete && !(body.cause?.line.seen?.without_shapes && more--)) return announce([$("summary"), $("past")].map((each) => each.textContent).join(". "));
  }
}
