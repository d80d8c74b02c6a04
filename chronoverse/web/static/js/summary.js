// What the head says of a failed job's log: how many lines are new, and how many look like errors.

import { $, make } from "./dom.js";
import { count } from "./format.js";
import { get } from "./session.js";

//: Bytes that are asked for. The page needs the counts, and the first line of each kind.
const BYTES = 4096;

/** A link to the first of these lines. It has the line's number as `data-number`. */
function link({ count: many, first: [line] }, one, more) {
  const link = make("a", "", `${count(many)} ${many === 1 ? one : more}`);
  link.href = `#L${line.sequence_num}`;
  link.dataset.number = line.sequence_num;
  return link;
}

/** Shows the summary. When it cannot be had, nothing is shown. */
export async function showSummary(path) {
  const body = await get(`${path}/summary?bytes=${BYTES}`).then((answer) => answer.body, () => null);
  const links = [];
  if (body?.new.first.length) links.push(link(body.new, "new line", "new lines"));
  if (body?.errors.first.length) links.push(link(body.errors, "error", "errors"));
  $("summary").replaceChildren(...links.flatMap((each, index) => (index ? [" · ", each] : [each])));
  $("summary").hidden = !links.length;
}
