// What the head says of a failed job's log: how many lines are new, and how many look like errors.

import { $, make } from "./dom.js";
import { count } from "./format.js";
import { get } from "./session.js";

//: Bytes that are asked for. The page needs only the counts and the first line of each kind. But a summary that leaves out
//: lines for want of room says the same as one that has not looked at the whole log.
const BYTES = 65_536;

/** A link to the first of these lines, such as "4 errors", or "4+ errors" if there may be more. It has the line's number as `data-number`. */
function link({ count: all, first }, noun, mayBeMore) {
  const [line] = first;
  // The service has not looked at all lines yet.
  const many = all ?? first.reduce((sum, each) => sum + (each.repeated ?? 1), 0);
  const link = make("a", "", `${count(many)}${mayBeMore ? "+" : ""} ${noun}${many === 1 && !mayBeMore ? "" : "s"}`);
  link.href = `#L${line.sequence_num}`;
  link.dataset.number = line.sequence_num;
  return link;
}

/** Shows the summary. When it cannot be had, nothing is shown. */
export async function showSummary(path) {
  const body = await get(`${path}/summary?bytes=${BYTES}`).then((answer) => answer.body, () => null);
  const links = [];
  if (body?.new.first.length) links.push(link(body.new, "new line", body.truncated));
  if (body?.errors.first.length) links.push(link(body.errors, "error", body.truncated));
  $("summary").replaceChildren(...links.flatMap((each, index) => (index ? [" · ", each] : [each])));
  $("summary").hidden = !links.length;
}
