// Limits on the part of a line that is stored and shown.

//: Characters of a message that are stored and shown. Only a download has the rest.
export const MAX_SHOWN = 20_000;

/** Whether both have the same unfinished long lines, by stream. */
export const sameOpenLines = (a, b) => a.stdout === b.stdout && a.stderr === b.stderr;

/** The line with its message truncated to MAX_SHOWN. `more` is true if something was cut off. */
export function truncate(line) {
  if (line.message.length <= MAX_SHOWN) return line;
  // Copied through JSON, because a slice would keep the whole string in memory.
  return { ...line, message: JSON.parse(JSON.stringify(line.message.slice(0, MAX_SHOWN))), more: true };
}
