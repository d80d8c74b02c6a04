// @ts-check
// The blocks of an event stream: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

/** Without `data`, a block is not an event. @typedef {{ id?: string, event?: string, data?: string }} Block */

export class BlockReader {
  #on;
  /** The pieces of an incomplete line. @type {string[]} */
  #pieces = [];
  /** @type {Block} */
  #block = {};
  #endsInReturn = false;

  /** @param {{ block: (block: Block) => void, comment: () => void, retry: (ms: number) => void }} on */
  constructor(on) {
    this.#on = on;
  }

  /** Reads the next part of the stream, which can end anywhere. @param {string} text */
  read(text) {
    if (!text) return;
    // CR LF ends one line, even if the two arrive in different parts.
    const rest = this.#endsInReturn && text[0] === "\n" ? text.slice(1) : text;
    this.#endsInReturn = text.endsWith("\r");
    const lines = rest.split(/\r\n|\r|\n/);
    this.#pieces.push(lines[0]);
    if (lines.length === 1) return;
    lines[0] = this.#pieces.join("");
    this.#pieces = lines.splice(-1);
    for (const line of lines) this.#line(line);
  }

  /** @param {string} line */
  #line(line) {
    if (!line) {
      const block = this.#block;
      this.#block = {};
      return this.#on.block(block);
    }
    const [, name, value = ""] = /** @type {RegExpExecArray} */ (/^([^:]*)(?:: ?(.*))?$/s.exec(line));
    if (line[0] === ":") this.#on.comment();
    else if (name === "data") this.#block.data = this.#block.data === undefined ? value : `${this.#block.data}\n${value}`;
    else if (name === "event") this.#block.event = value || undefined;
    else if (name === "id" && !value.includes("\0")) this.#block.id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.#on.retry(Number(value));
  }
}
