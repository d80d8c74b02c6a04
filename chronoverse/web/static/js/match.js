// A match of a search across jobs: a link to the line, with its number and an excerpt of its text.

import { jobPage } from "./addresses.js";
import { make } from "./dom.js";
import { count } from "./format.js";
import { segmentElement } from "./row.js";
import { segments, toUtf16Spans } from "./text.js";

//: Maximum number of characters shown of a match, and of those before its first highlight.
const SHOWN = 400;
const BEFORE = 120;
//: Characters around the first highlight from which the excerpt is made. The rest, possibly megabytes, is not processed.
const AROUND = 4000;
//: A lone surrogate at either end, left by a cut.
const HALVES = /^[\udc00-\udfff]|[\ud800-\udbff]$/g;

/** The excerpt of a message: segments of at most `SHOWN` characters in all, and on which sides text was cut off. */
export function excerpt(message, highlights) {
  const spans = toUtf16Spans(message, highlights);
  const first = spans[0]?.[0] ?? 0;
  const [start, end] = [Math.max(0, first - AROUND), Math.min(message.length, first + AROUND)];
  const marks = spans.filter(([from]) => from < end).map(([from, to]) => [from - start, to - start]);
  const all = segments(message.slice(start, end), marks);
  const before = all.slice(0, Math.max(0, all.findIndex(({ mark }) => mark))).reduce((sum, { text }) => sum + text.length, 0);
  const length = all.reduce((sum, { text }) => sum + text.length, 0);
  const skipped = length > SHOWN ? Math.max(0, Math.min(before - BEFORE, length - SHOWN)) : 0;
  let at = -skipped;
  const shown = [];
  for (const segment of all) {
    const text = segment.text.slice(Math.max(0, -at), Math.max(0, SHOWN - at)).replace(HALVES, "");
    if (text) shown.push({ ...segment, text });
    at += segment.text.length;
  }
  return { shown, cutBefore: start > 0 || skipped > 0, cutAfter: end < message.length || length - skipped > SHOWN };
}

export function matchElement(workflow, job, line, search = "") {
  const number = make("span", "number", count(line.sequence_num));
  const text = make("span", "text");
  const { shown, cutBefore, cutAfter } = excerpt(line.message, line.highlights);
  if (cutBefore) text.append(make("span", "more", "… "));
  for (const segment of shown) text.append(segmentElement({ ...segment, link: undefined }));
  if (cutAfter) text.append(make("span", "more", " …"));
  const isError = line.stream === "stderr";
  const href = `${jobPage(workflow, job)}${search && `?${search}`}#L${line.sequence_num}`;
  const words = [make("span", "sr", "Line "), number, make("span", "sr", isError ? " stderr: " : ": ")];
  return make("li", "", make("a", { href, className: isError ? "match err" : "match" }, ...words, text));
}
