// @ts-check
// The blocks of an event stream: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

/** Without `data`, a block is not an event. @typedef {{ id?: string, event?: string, data?: string }} Block */

/** @typedef {{ block: (block: Block) => void, comment: () => void, retry: (ms: number) => void }} Listener */

//: Maximum characters of a block, as in chronoverse/joblog/sse.py.
const BLOCK_CHARACTERS = 2 ** 24;

/** Returns a function that reads the next part of a stream, which can end anywhere. It throws if a block is too long. @type {(on: Listener) => (text: string) => void} */
export function blockReader(on) {
  /** The pieces of an incomplete line. @type {string[]} */
  let pieces = [];
  /** @type {Block} */
  let block = {};
  let endsInReturn = false;
  let pending = 0;

  /** @param {string} line */
  function readLine(line) {
    if (!line) {
      on.block(block);
      block = {};
      pending = 0;
      return;
    }
    const [, name, value = ""] = /** @type {RegExpExecArray} */ (/^([^:]*)(?:: ?(.*))?$/s.exec(line));
    if (line[0] === ":") on.comment();
    else if (name === "data") block.data = block.data === undefined ? value : `${block.data}\n${value}`;
    else if (name === "event") block.event = value || undefined;
    else if (name === "id" && !value.includes("\0")) block.id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) on.retry(Number(value));
  }

  return (text) => {
    if (!text) return;
    pending += text.length;
    // CR LF ends one line, even if the two arrive in different parts.
    const rest = endsInReturn && text[0] === "\n" ? text.slice(1) : text;
    endsInReturn = text.endsWith("\r");
    const lines = rest.split(/\r\n|\r|\n/);
    pieces.push(lines[0]);
    if (lines.length > 1) {
      lines[0] = pieces.join("");
      pieces = lines.splice(-1);
      for (const line of lines) readLine(line);
    }
    if (pending > BLOCK_CHARACTERS) throw new RangeError("an event is too long");
  };
}
