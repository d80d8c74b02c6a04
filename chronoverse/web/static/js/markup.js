// The markup of CI systems in logs: groups, annotations and commands. Only the beginning of a line is examined.

// GitHub Actions and Azure Pipelines: ::group::title, ::error file=a.js,line=3::text, ##[error]text, [command]text.
const COMMAND = /^(?:::(group|endgroup|error|warning|notice|debug)( [^\n]{0,500}?)?::|(?:##)?\[(command)\]|##\[(group|endgroup|error|warning|debug|section)\])/;
// GitLab: section_start:1560896352:name[collapsed=true], a carriage return, a sequence that clears the line, and the title.
const SECTION = /^(?:\x1b\[0?K)?section_(start|end):(\d{1,12}):([\w.-]{1,100})(?:\[[^\]\r\n]{0,200}\])?[\r\n]*(?:\x1b\[0?K)?/;
// Travis CI: travis_fold:start:name, a carriage return, a sequence that clears the line, and the title.
const FOLD = /^(?:\x1b\[0?K)?travis_(fold|time):(start|end):([\w.:,=-]{1,200})[\r\n]*(?:\x1b\[0?K)?/;
// Buildkite: --- title, +++ title, ~~~ title. Excludes the headers of a diff and the results of go test.
const HEADING = /^(?:---|\+\+\+|~~~) (?=\S)(?![ab]\/|\/dev\/|(?:FAIL|PASS|SKIP|BENCH)\b)(?![^\n]{0,500}\t)/;

/** An RE2 expression for lines that start or end a group, and errors. Matches all of them, and some other lines. */
export const MARKERS = "^(\\x1b\\[0?K)?((::|##\\[)((end)?group|error)|section_(start|end):[0-9]|travis_(fold|time):(start|end):|(---|\\+\\+\\+|~~~) )";

const NONE = null;

/**
 * The markup at the beginning of a message: `{kind, skip, of, name, at, where, ends}`, or null. `kind` is "group",
 * "end", "error", "warning", "notice", "debug", "command" or "section". The first `skip` characters are hidden. `of` is
 * the style of a group: "github", "gitlab", "travis" or "buildkite". `name` is from GitLab or Travis CI, `at` (ms) from
 * GitLab, and `where` is an annotation's place, such as "app.js:3". `ends` is the name of a section that ends in the
 * same line.
 */
export function markup(message) {
  const first = message.charCodeAt(0);
  // : # [ s t ESC - + ~
  if (![0x3a, 0x23, 0x5b, 0x73, 0x74, 0x1b, 0x2d, 0x2b, 0x7e].includes(first)) return NONE;
  const command = COMMAND.exec(message);
  if (command) {
    const kind = command[1] ?? command[3] ?? command[4];
    const skip = command[0].length;
    if (kind === "endgroup") return { kind: "end", skip, of: "github" };
    if (kind === "group") return { kind, skip, of: "github" };
    return { kind, skip, where: place(command[2] ?? "") };
  }
  const section = SECTION.exec(message);
  if (section) {
    const [{ length: skip }, what, seconds, name] = section;
    const next = what === "end" && SECTION.exec(message.slice(skip));
    const found = { skip, of: "gitlab", name, at: Number(seconds) * 1000 };
    if (next && next[1] === "start") return { ...found, kind: "group", skip: skip + next[0].length, name: next[3], at: Number(next[2]) * 1000, ends: name };
    return { ...found, kind: what === "start" ? "group" : "end" };
  }
  const fold = FOLD.exec(message);
  if (fold) {
    // In the same line, the timing of a command follows the start of its fold, or precedes its end.
    const second = FOLD.exec(message.slice(fold[0].length));
    const skip = fold[0].length + (second ? second[0].length : 0);
    const [, , what, name] = [fold, second].find((each) => each?.[1] === "fold") ?? [];
    return name ? { kind: what === "start" ? "group" : "end", skip, of: "travis", name } : { kind: "debug", skip };
  }
  return HEADING.test(message) ? { kind: "group", skip: 0, of: "buildkite" } : NONE;
}

/** The place in an annotation's properties, such as "app.js:3". Empty without a file. */
function place(properties) {
  const values = Object.fromEntries(properties.trim().split(",").map((pair) => pair.split("=", 2)));
  if (!values.file) return "";
  const file = values.file.replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%25", "%");
  return values.line ? `${file}:${values.line}` : file;
}
