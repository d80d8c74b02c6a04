// A line that a search of several jobs has found: a link to it, with its number and an excerpt of its text.

import { jobPage } from "./addresses.js";
import { make } from "./dom.js";
import { count } from "./format.js";
import { segmentElement } from "./row.js";
import { segments, toUtf16Spans } from "./text.js";

//: Characters of a match that are shown, and how many of them may be in front of its first highlight.
const SHOWN = 400;
const BEFORE = 120;
//: Characters around the first highlight of which the excerpt is made. The rest, which may be megabytes, is not read.
const AROUND = 4000;
//: Half a character at an end, which is left of one that was cut in two.
const HALVES = /^[\udc00-\udfff]|[\ud800-\udbff]$/g;

/** What is shown of a message: segments of at most `SHOWN` characters in all, and whether text was left out on a side. */
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

/** The item of a list for a line of a job. Addresses in the text are no links, because all of it is one. */
export function matchElement(workflow, job, line, search = "") {
  const number = make("span", "number", count(line.sequence_num));
  const text = make("span", "text");
  const { shown, cutBefore, cutAfter } = excerpt(line.message, line.highlights);
  if (cutBefore) text.append(make("span", "more", "… "));
  for (const segment of shown) text.append(segmentElement({ ...segment, link: undefined }));
  if (cutAfter) text.append(make("span", "more", " …"));
  const link = make("a", "match", make("span", "sr", "Line "), number);
  if (line.stream === "stderr") {
    link.classList.add("err");
    link.append(make("span", "sr", " stderr"));
  }
  link.append(make("span", "sr", ": "), text);
  link.href = `${jobPage(workflow, job)}${search && `?${search}`}#L${line.sequence_num}`;
  return make("li", "", link);
}
