// The markup of CI systems in logs: groups, annotations and commands. Only the beginning of a line is examined.

/** The time before each line of a log downloaded from GitHub. */
export const TIME = /^\ufeff?(\d{4}-\d\d-\d\dT[\d:.]+Z) /;
// GitHub Actions and Azure Pipelines: ::group::title, ::error file=a.js,line=3::text, ##[error]text, [command]text.
const COMMAND = /^(?:\ufeff?(\d{4}-\d\d-\d\dT[\d:.]+Z) )?(?:::(group|endgroup|error|warning|notice|debug)( [^\n]{0,500}?)?::|(?:##)?\[(command)\]|##\[(group|endgroup|error|warning|debug|section)\])/;
// GitLab: section_start:1560896352:name[collapsed=true], a carriage return, a sequence that clears the line, and the title.
const SECTION = /^(?:\x1b\[0?K)?section_(start|end):(\d{1,12}):([\w.-]{1,100})(?:\[[^\]\r\n]{0,200}\])?[\r\n]*(?:\x1b\[0?K)?/;
// Travis CI: travis_fold:start:name, a carriage return, a sequence that clears the line, and the title.
const FOLD = /^(?:\x1b\[0?K)?travis_(fold|time):(start|end):([\w.:,=-]{1,200})[\r\n]*(?:\x1b\[0?K)?/;
// Buildkite: --- title, +++ title, ~~~ title. Excludes the headers of a diff and the results of go test.
const HEADING = /^(?:---|\+\+\+|~~~) (?=\S)(?![ab]\/|\/dev\/|(?:FAIL|PASS|SKIP|BENCH)\b)(?![^\n]{0,500}\t)/;

/** An RE2 expression for lines that start or end a group, and errors. Matches all of them, and some other lines. */
export const MARKERS =
  "^((\ufeff?[0-9]{4}-[0-9-]{5}T[0-9:.]+Z )?(::|##\\[)((end)?group|error)|(\\x1b\\[0?K)?(section_(start|end):[0-9]|travis_(fold|time):(start|end):)|(---|\\+\\+\\+|~~~) )";

/**
 * The markup at the beginning of a message, whose `skip` characters are hidden, or null. Groups and their ends have the
 * style `of`, some with a time `at` (ms) and a `name`; `ends` is the name of another that ends in the same line. Other
 * kinds can have a place, `where`.
 */
export function markup(message) {
  if (!/^[:#[st\x1b+~\d\ufeff-]/.test(message)) return null;
  const command = COMMAND.exec(message);
  if (command) {
    const [{ length: skip }, time, name, properties = "", ...others] = command;
    const kind = name ?? others.find(Boolean);
    if (!kind.endsWith("group")) return { kind, skip, where: place(properties) };
    return { kind: kind === "group" ? kind : "end", skip, of: "github", at: Date.parse(time) || undefined };
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
  return HEADING.test(message) ? { kind: "group", skip: 0, of: "buildkite" } : null;
}

function place(properties) {
  const values = Object.fromEntries(properties.trim().split(",").map((pair) => pair.split("=", 2)));
  if (!values.file) return "";
  const file = values.file.replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%25", "%");
  return values.line ? `${file}:${values.line}` : file;
}
