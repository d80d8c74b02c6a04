/** Reads job logs of a Chronoverse service. README.md has examples. */

/**
 * A bearer token, or a function that returns one. The function is called for each request, and once more after a 401,
 * with the refusal and the rejected token. If it throws, the call fails with that error.
 */
export type Token = string | ((refused?: Refused, used?: string) => string | Promise<string>);

export interface WorkflowOptions {
  /** The service's address, such as `https://logs.example`. Optional in a page of the service itself. */
  service?: string;
  workflow: string;
  token?: Token;
  /** Aborts the call, which then throws the signal's reason. */
  signal?: AbortSignal;
}

export interface JobOptions extends WorkflowOptions {
  job: string;
}

export interface Filter {
  /** Only lines that contain this text, case-insensitive. */
  q?: string;
  /** `q` is an RE2 regular expression. */
  regex?: boolean;
  stream?: "stdout" | "stderr";
}

export type Ended = "COMPLETED" | "FAILED" | "CANCELED" | "LOST";
export type Status = "PENDING" | "RUNNING" | Ended;

export interface Line {
  timestamp: string;
  message: string;
  sequence_num: number;
  stream: "stdout" | "stderr";
  /** The line continues in the next entry of its stream. */
  partial?: true;
}

/** A search result. `highlights` are the matches, as `[start, end)` in characters. `context`: the line does not match. */
export interface FoundLine extends Line {
  highlights?: [start: number, end: number][];
  context?: true;
}

/** Lines `from` to `to` are no longer available. */
export interface Gap {
  from: number;
  to: number;
  reason: string;
}

export interface Job {
  workflow_id: string;
  id: string;
  status: Status;
  attempt: number;
  created_at: string | null;
  started_at: string | null;
  finished_at: string | null;
  exit_code: number | null;
  lines: number;
  dropped: number;
  first_sequence_num: number;
  last_sequence_num: number;
  labels: Record<string, string>;
}

/** A job's state in a stream. The optional fields are set once it has ended. */
export type JobState = Pick<Job, "status" | "attempt" | "first_sequence_num" | "last_sequence_num" | "started_at" | "labels"> &
  Partial<Pick<Job, "exit_code" | "lines" | "dropped" | "finished_at">>;

/** `cursor` is the number of the last line that was returned or skipped: the `offset` at which another `follow` resumes. */
interface FrameOf<Event extends string, Data> {
  event: Event;
  data: Data;
  cursor: number | null;
}

export type Frame =
  | FrameOf<"connected", { status: string }>
  | FrameOf<"job", JobState>
  | FrameOf<"log", Line>
  | FrameOf<"gap", Gap>
  /** These lines were redacted: stop showing their old text. */
  | FrameOf<"redact", { from: number; to: number }>
  /** Why this connection ends. Either the client reconnects, or StreamError is thrown. */
  | FrameOf<"error", string>
  /** The job has completed, failed or been canceled. This is the last frame. */
  | FrameOf<"end", { status: string }>
  /** The filter has skipped all lines up to `cursor`. */
  | FrameOf<"cursor", null>;

interface Persistent {
  /** Seconds of continuous failures after which the last error is thrown. May be Infinity. The default is 600. */
  giveUpAfter?: number;
}

interface Following extends Persistent {
  /** Seconds between the service's heartbeats, 15 by default. After three missed ones, the connection is replaced. */
  heartbeat?: number;
  /** Called when a connection has ended. The next attempt starts in `delay` milliseconds. */
  onReconnect?: (failure: Error, delay: number) => void;
}

export interface FollowOptions extends JobOptions, Filter, Following {
  /** Start after this line number: 0, the default, is the beginning, and `latest` the end. */
  offset?: number | "latest";
  /** Start with this many of the last lines, instead of `offset`. */
  tail?: number;
  /** Seconds to wait for a job that does not exist yet. May be Infinity. The default is 0. */
  wait?: number;
}

/**
 * Follows the log of a job until it ends, reconnecting as needed. Yields each line number once and in order, or a `gap`
 * that covers it. Throws StreamError if the log ended with an error, Refused if retrying cannot help, and Refused or
 * Unreachable after `giveUpAfter` seconds of failures.
 */
export function follow(options: FollowOptions): AsyncGenerator<Frame, void, undefined>;

export interface FollowWorkflowOptions extends WorkflowOptions, Following {
  /** Start with this many of the newest jobs, up to 1,000. The default is 100. */
  jobs?: number;
  /** Only jobs with this status. A job's change to another status is not reported. */
  status?: Status;
  labels?: Record<string, string>;
  /** The `cursor` of an earlier call, to resume after. */
  after?: number;
}

/** A job in a workflow's stream. A deleted job has the status DELETED. */
export type WorkflowJob = Omit<Job, "status"> & { status: Status | "DELETED" };

/** `cursor` is the `after` at which another call resumes. Null until the newest jobs have arrived. */
export type WorkflowFrame =
  | FrameOf<"connected", { status: string }>
  /** Changes were missed: discard the state of all jobs. The current jobs follow. */
  | FrameOf<"reset", { reason: string }>
  | FrameOf<"job", WorkflowJob>
  /** Why this connection ends. The client reconnects. */
  | FrameOf<"error", string>
  /** The newest jobs have arrived, or the filter has skipped all changes up to `cursor`. */
  | FrameOf<"cursor", null>;

/** Follows the jobs of a workflow: the newest ones, oldest first, then each change. Never ends. Throws like `follow`. */
export function followWorkflow(options: FollowWorkflowOptions): AsyncGenerator<WorkflowFrame, void, undefined>;

export interface PageOptions extends JobOptions, Filter {
  /** Lines per page, from 1 to 1,000. The default is 100. */
  limit?: number;
  order?: "asc" | "desc";
  /** The line number after which the page starts, in its order. */
  offset?: number;
  /** The cursor of the previous page. It is bound to the job, the order and the filter. */
  cursor?: string;
  /** With `q`: the number of context lines before and after each match. */
  before?: number;
  after?: number;
}

/** A page can be short or empty before the end of the log, where `cursor` is null. `position` is how far it has read. */
export interface Page {
  workflow_id: string;
  id: string;
  logs: FoundLine[];
  cursor: string | null;
  position: number | null;
}

/** One page of a log, or of the lines that match `q`. Makes up to four attempts. Throws Refused or Unreachable. */
export function page(options: PageOptions): Promise<Page>;

export interface WaitOptions extends JobOptions, Filter, Persistent {
  /** The line number after which to search. The default is 0. */
  offset?: number;
  /** Return `logs`, too: the match and later matches that already exist, up to this many in all. At most 1,000. */
  limit?: number;
  /** Seconds. May be Infinity. The default is 30. */
  timeout?: number;
}

interface WaitedOf<Outcome extends string, Found> {
  outcome: Outcome;
  log: Found;
  /** With `limit`: `log` and the matches after it. */
  logs?: Line[];
  /** How far the log was searched. Pass it as the `offset` of another wait to miss nothing and see nothing twice. */
  cursor: number;
  job: Job;
  /** Unavailable lines: the first 100 gaps of each of the wait's requests. */
  gaps: Gap[];
  /** The number of further gaps of the last request. */
  more_gaps?: number;
}

/** `ended` and `timeout`: no line matched. */
export type Waited = WaitedOf<"matched", Line> | WaitedOf<"ended" | "timeout", null>;

/**
 * Waits until a line after `offset` matches `q`, the job ends, or the timeout expires. Without `q`, waits for the end.
 * A job that does not exist yet is waited for, too; Refused with status 404 is thrown if it does not appear in time.
 */
export function wait(options: WaitOptions): Promise<Waited>;

export interface EndOptions extends JobOptions {
  status: Ended;
  exitCode?: number;
}

/** Ends a job that no runner holds. Idempotent for the same status. Throws Refused: HELD (it has a runner) or CLOSED. */
export function end(options: EndOptions): Promise<Job>;

export interface WatchBody {
  on: "end" | "change" | "silent";
  url: string;
  /** Ends to report. The default is FAILED and LOST, and for `change` also COMPLETED. */
  status?: Ended[];
  label?: Record<string, string>;
  /** For `change`: compare with the previous job that has the same values of these labels. */
  same?: string[];
  /** For `silent`: seconds without output after which a running job is reported. */
  seconds?: number;
  /** Signs messages: `whsec_` followed by base64. Generated for a new watch, and kept for an existing one, if omitted. */
  secret?: string;
}

export interface Watch extends Required<Omit<WatchBody, "seconds" | "secret">> {
  workflow_id: string;
  id: string;
  seconds: number | null;
  /** Returned once, if the secret was generated. */
  secret?: string;
  /** `failing` when no delivery has succeeded for a day. */
  state: "ok" | "retrying" | "failing";
  error: string | null;
  failing_since: string | null;
  delivered_at: string | null;
  waiting: number;
  dropped: number;
}

/** A workflow's watches. These four functions need a token with `logs:admin`, and fail like `page`. */
export function watches(options: WorkflowOptions): Promise<Watch[]>;
export function putWatch(options: WorkflowOptions, id: string, watch: WatchBody): Promise<Watch>;
export function deleteWatch(options: WorkflowOptions, id: string): Promise<null>;
/** Sends a test message now. Once it was sent, `delivered_at` or `error` of the watch changes. */
export function testWatch(options: WorkflowOptions, id: string): Promise<Watch>;

/**
 * The JSON of any route of the service. `position` is the number in the response's `Last-Event-ID`. Makes one attempt.
 * Throws Refused, or Unreachable, also after `limitMs` milliseconds without data (30,000). `headers` are added to the
 * request.
 */
export function get(
  url: string,
  options?: { token?: Token; signal?: AbortSignal; limitMs?: number; headers?: Record<string, string> },
): Promise<{ body: any; headers: Headers; position: number | null }>;

/** The service refused the request, with this HTTP status. `retryAfter` is in seconds, or 0. */
export class Refused extends Error {
  constructor(status: number, detail: string, retryAfter: number, reason?: string);
  status: number;
  reason: string | undefined;
  retryAfter: number;
}

export class Unreachable extends Error {}

/** The log ended with an error, given in the message: its runner was lost, or the log is gone. */
export class StreamError extends Error {
  constructor(message: string, cursor: number | null, options?: ErrorOptions);
  cursor: number | null;
}
