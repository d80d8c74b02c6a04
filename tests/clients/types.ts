// A program that uses every part of the module. TypeScript accepts it, and finds what is marked as wrong.
import {
  deleteWatch, end, follow, get, page, putWatch, Refused, StreamError, testWatch, Unreachable, wait, watches,
} from "chronoverse";
import type { FollowOptions, Frame, Job, Token } from "chronoverse";

const token: Token = async (refused) => (refused ? `another one, because of ${refused.status}` : "the first");
const job = { service: "https://logs.example", workflow: "demo", job: "job-1", token };

export async function read(signal: AbortSignal): Promise<number | null> {
  const options: FollowOptions = { ...job, offset: "latest", stream: "stderr", q: "x", regex: true, wait: Infinity, signal };
  let cursor: number | null = null;
  for await (const frame of follow({ ...options, onReconnect: (failure, delay) => console.error(failure.message, delay) })) {
    cursor = frame.cursor;
    describe(frame);
  }
  return cursor;
}

export function describe(frame: Frame): string {
  switch (frame.event) {
    case "log":
      return `${frame.data.sequence_num} ${frame.data.stream} ${frame.data.message} ${frame.data.partial ?? false}`;
    case "gap":
      return `${frame.data.from} ${frame.data.to} ${frame.data.reason}`;
    case "job":
      return `${frame.data.status} ${frame.data.exit_code ?? "?"}`;
    case "error":
      return frame.data.trim();
    case "redact":
      return `${frame.data.from} ${frame.data.to}`;
    case "connected":
    case "end":
      return frame.data.status;
    case "cursor":
      return `${frame.cursor}`;
    default:
      return frame satisfies never;
  }
}

export async function others(): Promise<Job> {
  const { logs, cursor, position } = await page({ ...job, limit: 1000, order: "desc", q: "error", before: 2 });
  const spans: [number, number][] = logs[0]?.highlights ?? [];
  const { outcome, gaps, log } = await wait({ ...job, q: "ready", timeout: 600, offset: position ?? 0 });
  const { body } = await get("https://logs.example/workflows", { token: "a token" });
  console.log(cursor?.length, spans, outcome === "matched", gaps[0]?.from, log?.message, body.workflows);
  return (await wait({ ...job, token: "a token" })).job;
}

export function explain(error: unknown): string {
  if (error instanceof StreamError) return `${error.cursor} ${error.message}`;
  if (error instanceof Refused) return `${error.status} ${error.reason ?? ""} ${error.retryAfter}`;
  if (error instanceof Unreachable) return error.message;
  throw error;
}

export async function ready(): Promise<number> {
  const { outcome, log } = await wait({ ...job, q: "ready" });
  return outcome === "matched" ? log.sequence_num : 0;
}

export async function ended(): Promise<number | null> {
  return (await end({ ...job, status: "FAILED", exitCode: 1 })).exit_code;
}

export async function watched(): Promise<string[]> {
  const made = await putWatch(job, "main", { on: "silent", seconds: 60, url: "https://hooks.example/", status: [] });
  await testWatch(job, made.id);
  await deleteWatch(job, "main");
  return (await watches(job)).map(({ id, state, seconds }) => `${id} ${state} ${seconds ?? 0}`);
}

// @ts-expect-error: a watch needs a URL
putWatch(job, "main", { on: "end" });
// @ts-expect-error: PENDING is no end
end({ ...job, status: "PENDING" });
// @ts-expect-error: a job is needed
follow({ workflow: "demo" });
// @ts-expect-error: there is no such stream
page({ ...job, stream: "stdin" });
// @ts-expect-error: a page begins at a number
page({ ...job, offset: "latest" });
// @ts-expect-error: there is no such outcome
wait(job).then(({ outcome }) => outcome === "lost");
