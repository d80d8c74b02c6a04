// A small runner: node runner.mjs WORKFLOW JOB [KEY=VALUE...] -- CMD...
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import { constants } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { TextDecoder } from "node:util";

const { CHRONOVERSE_URL: url, CHRONOVERSE_TOKEN: bearer, CHRONOVERSE_LEASE_SECONDS: lease = "30" } = process.env;
const [workflow, id, ...rest] = process.argv.slice(2);
const given = rest.splice(0, rest.indexOf("--"));
const labels = Object.fromEntries(given.map((text) => text.split(/=(.*)/s, 2)));
const command = rest.slice(1);
const token = randomBytes(16).toString("hex");

/** The status and the JSON of the answer to a request, which is sent until there is one. */
async function post(route, body) {
  for (let pause = 100; ; pause = Math.min(2 * pause, 1_000)) {
    let wait = pause;
    try {
      const headers = { Authorization: `Bearer ${bearer}`, "Content-Type": "application/json" };
      // The start of fetch takes a third of the processor time of a short run.
      const request = http.request(`${url}/workflows/${workflow}/jobs/${id}/${route}`, { method: "POST", headers });
      const [answer] = await once(request.end(JSON.stringify({ token, ...body })), "response");
      const text = Buffer.concat(await answer.toArray()).toString();
      if (![408, 429, 500, 502, 503, 504].includes(answer.statusCode)) {
        return { status: answer.statusCode, ...(text && JSON.parse(text)) };
      }
      wait = Math.max(wait, 1_000 * Number(answer.headers["retry-after"] ?? 0));
    } catch {
      // There was no answer.
    }
    await sleep(wait);
  }
}

const lines = [];

/** Adds a line, in pieces of at most 64,000 bytes. */
function add(stream, text) {
  const timestamp = new Date().toISOString();
  const message = text.replace(/\r$/, "").split("\r").at(-1);
  const pieces = message.length > 16_000 ? message.match(/.{1,16000}/gsu) : [message];
  for (const [index, piece] of pieces.entries()) {
    lines.push({ timestamp, message: piece, stream, partial: index < pieces.length - 1 });
  }
}

function capture(stream, pipe) {
  const decoder = new TextDecoder();
  let open = [];
  pipe.on("data", (bytes) => {
    const parts = decoder.decode(bytes, { stream: true }).split("\n");
    for (const part of parts.slice(0, -1)) {
      add(stream, open.join("") + part);
      open = [];
    }
    open.push(parts.at(-1));
  });
  pipe.on("end", () => {
    const last = open.join("") + decoder.decode();
    if (last) add(stream, last);
  });
}

const { CHRONOVERSE_TOKEN: _, ...env } = process.env;
const child = spawn(command[0], command.slice(1), { env, stdio: ["inherit", "pipe", "pipe"] });
capture("stdout", child.stdout);
capture("stderr", child.stderr);
let canceled = false;
for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"]) {
  process.on(signal, () => {
    canceled = true;
    child.kill(signal);
  });
}
let code = null;
const ended = new Promise((resolve) => {
  child.on("error", (error) => resolve((code = error.code === "ENOENT" ? 127 : 126)));
  child.on("close", (number, signal) => resolve((code ??= signal ? 128 + constants.signals[signal] : number)));
});

/** Opens the job, without the labels that are refused. */
async function open() {
  const answer = await post("attempts", { labels });
  if (answer.reason !== "label-set") return answer;
  for (const key of answer.labels) delete labels[key];
  return post("attempts", { labels });
}

/** The next lines, as many as one request may have. */
function batch(sent) {
  let bytes = 0;
  return lines.slice(sent, sent + 500).filter((line, index) => {
    bytes += 2 * line.message.length + 100;
    return !index || bytes < 1_000_000;
  });
}

let opened = await open();
let [sent, answer] = [0, opened];
while (answer.status === 200) {
  const isOver = code !== null;
  const some = batch(sent);
  if (some.length || !isOver) {
    answer = await post("logs", { attempt: opened.attempt, first: opened.next + sent, lines: some });
    if (answer.status === 200) sent += some.length;
    if (!some.length) await Promise.race([ended, sleep(Math.min(500, 300 * lease))]);
  } else {
    const how = code === 0 ? "COMPLETED" : canceled ? "CANCELED" : "FAILED";
    answer = await post("end", { attempt: opened.attempt, status: how, exit_code: code, next: opened.next + sent });
  }
  if (answer.status === 409 && ["GAP", "quota"].includes(answer.reason) && answer.expected >= opened.next) {
    sent = answer.expected - opened.next;
    answer.status = 200;
  }
}
if (answer.status !== 204) console.error(`not published any more: ${answer.status} ${answer.detail}`);
process.exitCode = await ended;
