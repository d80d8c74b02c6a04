/** Reads job logs of a Chronoverse service. README.md has examples. */

/**
 * A bearer token, or a function that returns one. The function is called for each request, and once more, with the
 * refusal and the token that was used, when the service has answered 401. What it throws ends the call.
 */
export type Token = string | ((refused?: Refused, used?: string) => string | Promise<string>);

/** Which job, and as whom. */
export interface JobOptions {
  /** The address of the service, such as `https://logs.example`. In a page of the service itself it may be left out. */
  service?: string;
  workflow: string;
  job: string;
  token?: Token;
  /** Ends the call and closes its connection. The call then throws the signal's reason. */
  signal?: AbortSignal;
}

/** Which lines. */
export interface Filter {
  /** Only lines that contain this text, in upper or lower case. */
  q?: string;
  /** `q` is a regular expression of RE2. */
  regex?: boolean;
  stream?: "stdout" | "stderr";
}

export type Status = "PENDING" | "RUNNING" | "COMPLETED" | "FAILED" | "CANCELED" | "LOST";

export interface Line {
  timestamp: string;
  message: string;
  /** The line's number. The first line of a log is 1. */
  sequence_num: number;
  stream: "stdout" | "stderr";
  /** The line continues in the next entry of its stream. */
  partial?: true;
}

/** A line of a search. `highlights` are the matches, as `[start, end)` in characters. */
export interface FoundLine extends Line {
  highlights?: [start: number, end: number][];
  /** It does not match: it is before or after a line that does. */
  context?: true;
}

/** Lines that cannot be had any more, from `from` to `to`. */
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
  /** What the job was for, such as its `branch`. */
  labels: Record<string, string>;
}

/** A job in a stream. The optional ones are there when it has ended. */
export interface JobState {
  status: Status;
  attempt: number;
  first_sequence_num: number;
  last_sequence_num: number;
  started_at: string | null;
  exit_code?: number | null;
  lines?: number;
  dropped?: number;
  finished_at?: string | null;
  labels: Record<string, string>;
}

/** `cursor` is the last number that was given or skipped: as `offset` of another `follow` it misses nothing. */
interface FrameOf<Event extends string, Data> {
  event: Event;
  data: Data;
  cursor: number | null;
}

export type Frame =
  /** A connection is there, the first or another. */
  | FrameOf<"connected", { status: string }>
  /** The job's state, whenever it changes. */
  | FrameOf<"job", JobState>
  | FrameOf<"log", Line>
  | FrameOf<"gap", Gap>
  /** These lines were redacted: their old text must not be shown any more. */
  | FrameOf<"redact", { from: number; to: number }>
  /** Why this connection ends. Another one follows, or the StreamError. */
  | FrameOf<"error", string>
  /** The job has completed, failed or was cancelled. Nothing comes after it. */
  | FrameOf<"end", { status: string }>
  /** The filter has left out the lines up to `cursor`. */
  | FrameOf<"cursor", null>;

export interface FollowOptions extends JobOptions, Filter {
  /** The number after which to begin, 0 for the beginning, or `latest` for new lines only. The default is 0. */
  offset?: number | "latest";
  /** Begin with so many last lines. Not together with `offset`. */
  tail?: number;
  /** Seconds in which the job must come if it does not exist yet. May be Infinity. The default is 0. */
  wait?: number;
  /** Seconds between two heartbeats of the service. Without three of them the connection counts as dead. Default 15. */
  heartbeat?: number;
  /** Seconds of failures after which the last one is thrown. May be Infinity. The default is 600. */
  giveUpAfter?: number;
  /** Called when a connection has ended and another is tried in `delay` milliseconds. */
  onReconnect?: (failure: Error, delay: number) => void;
}

/**
 * Follows the log of a job until it ends, over as many connections as it takes. Gives each number once and in order, or a
 * `gap` that names it. It ends after the `end` frame. Throws StreamError when the log ended with an error, Refused when
 * no other attempt can help, and Refused or Unreachable after `giveUpAfter` seconds of failures.
 */
export function follow(options: FollowOptions): AsyncGenerator<Frame, void, undefined>;

export interface FollowWorkflowOptions {
  /** As for a job. */
  service?: string;
  workflow: string;
  token?: Token;
  signal?: AbortSignal;
  /** Begin with so many of the newest jobs, up to 1,000. The default is 100. */
  jobs?: number;
  /** Only jobs with this status. That one of them gets another is not given. */
  status?: Status;
  /** Only jobs with these labels. */
  labels?: Record<string, string>;
  /** A `cursor` of an earlier call, after which to go on. */
  after?: number;
  heartbeat?: number;
  giveUpAfter?: number;
  onReconnect?: (failure: Error, delay: number) => void;
}

/** A job in a workflow's stream. A deleted one has the status DELETED. */
export type WorkflowJob = Omit<Job, "status"> & { status: Status | "DELETED" };

/** With `cursor` as `after`, another call misses no change. It is null until the newest jobs have come. */
export type WorkflowFrame =
  | FrameOf<"connected", { status: string }>
  /** Changes are missing. All that is known of the jobs is out of date, and they follow. */
  | FrameOf<"reset", { reason: string }>
  /** One of the newest jobs, or a job that has changed. */
  | FrameOf<"job", WorkflowJob>
  /** Why this connection ends. Another one follows. */
  | FrameOf<"error", string>
  /** The newest jobs have come, or the filter has left out the changes up to `cursor`. */
  | FrameOf<"cursor", null>;

/**
 * Follows the jobs of a workflow: the newest ones, oldest first, then each change, over as many connections as it takes. It
 * has no end. Throws Refused when no other attempt can help, and Refused or Unreachable after `giveUpAfter` seconds of
 * failures.
 */
export function followWorkflow(options: FollowWorkflowOptions): AsyncGenerator<WorkflowFrame, void, undefined>;

export interface PageOptions extends JobOptions, Filter {
  /** Lines of the page, from 1 to 1,000. The default is 100. */
  limit?: number;
  order?: "asc" | "desc";
  /** The number after which the page begins, in its order. */
  offset?: number;
  /** The cursor of the page before. It is bound to the job, the order and the filter. */
  cursor?: string;
  /** With `q`: so many lines before and after each match. */
  before?: number;
  after?: number;
}

export interface Page {
  workflow_id: string;
  id: string;
  /** A page may be short or empty and still have a `cursor`. */
  logs: FoundLine[];
  /** For the next page. Null at the end of the log. */
  cursor: string | null;
  /** How far the page has come: the `offset` with which to go on later. */
  position: number | null;
}

/** One page of a log, or of the lines that match `q`. Tries four times. Throws Refused or Unreachable. */
export function page(options: PageOptions): Promise<Page>;

export interface WaitOptions extends JobOptions, Filter {
  /** The number after which to look. The default is 0. */
  offset?: number;
  /** Also the lines after the first that match and are there already, up to 1,000 in all, as `logs`. */
  limit?: number;
  /** Seconds. May be Infinity. The default is 30. */
  timeout?: number;
  /** Seconds of failures after which the last one is thrown. May be Infinity. The default is 600. */
  giveUpAfter?: number;
}

interface WaitedOf<Outcome extends string, Found> {
  outcome: Outcome;
  log: Found;
  /** With `limit`: `log`, and lines after it that match. */
  logs?: Line[];
  /** How far it has looked. As `offset` of another wait it misses nothing, and sees nothing twice. */
  cursor: number;
  job: Job;
  /** Lines that could not be read. Of each request of the wait these are the first 100 gaps. */
  gaps: Gap[];
  /** How many gaps the last request had beyond these. */
  more_gaps?: number;
}

export type Waited =
  /** A line matches: `log`. */
  | WaitedOf<"matched", Line>
  /** The job has ended without such a line (also as LOST: see `job.status`), or the time is over. */
  | WaitedOf<"ended" | "timeout", null>;

/**
 * Waits until a line after `offset` matches `q`, the job ends, or the time is over. Without `q` it waits for the end. A job
 * that does not exist yet is waited for: when it has not come in time, Refused with status 404 is thrown.
 */
export function wait(options: WaitOptions): Promise<Waited>;

export interface EndOptions extends JobOptions {
  status: "COMPLETED" | "FAILED" | "CANCELED" | "LOST";
  exitCode?: number;
}

/** Ends a job that no runner holds, if it has not ended so already. Throws Refused: HELD by a runner, CLOSED otherwise. */
export function end(options: EndOptions): Promise<Job>;

/** A workflow, and as whom: here one with `logs:admin`. */
export interface WorkflowOptions {
  service?: string;
  workflow: string;
  token?: Token;
  signal?: AbortSignal;
}

/** Whom to tell what of a workflow's jobs. */
export interface WatchBody {
  on: "end" | "change" | "silent";
  url: string;
  /** Ends to tell. The default is FAILED and LOST, and of a `change` also COMPLETED. */
  status?: ("COMPLETED" | "FAILED" | "CANCELED" | "LOST")[];
  /** Labels that a job must have. */
  label?: Record<string, string>;
  /** Of a `change`: labels in which the job before it must agree. */
  same?: string[];
  /** Of `silent`: for how long a running job has printed nothing. */
  seconds?: number;
  /** Signs messages: `whsec_` and base64. Without it a new watch gets one, and another keeps its own. */
  secret?: string;
}

/** A watch, and how its deliveries go. */
export interface Watch extends Required<Omit<WatchBody, "seconds" | "secret">> {
  workflow_id: string;
  id: string;
  seconds: number | null;
  /** Once, of a secret that was generated. */
  secret?: string;
  /** `failing` when no delivery has succeeded for a day. */
  state: "ok" | "retrying" | "failing";
  error: string | null;
  failing_since: string | null;
  delivered_at: string | null;
  waiting: number;
  dropped: number;
}

/** A workflow's watches. These four try four times, and throw Refused or Unreachable. */
export function watches(options: WorkflowOptions): Promise<Watch[]>;
/** Adds or replaces a watch. */
export function putWatch(options: WorkflowOptions, id: string, watch: WatchBody): Promise<Watch>;
export function deleteWatch(options: WorkflowOptions, id: string): Promise<null>;
/** Sends a message now. When it was sent, `delivered_at` or `error` of the watch changes. */
export function testWatch(options: WorkflowOptions, id: string): Promise<Watch>;

/**
 * The JSON of any route of the service. `position` is the number in the answer's `Last-Event-ID`. It tries once. Throws
 * Refused, and Unreachable, also when nothing has come for `limitMs` milliseconds (30,000). `headers` are sent, too.
 */
export function get(
  url: string,
  options?: { token?: Token; signal?: AbortSignal; limitMs?: number; headers?: Record<string, string> },
): Promise<{ body: any; headers: Headers; position: number | null }>;

/** The service has refused. The message is its explanation. */
export class Refused extends Error {
  constructor(status: number, detail: string, retryAfter: number, reason?: string);
  /** The status of the HTTP answer. */
  status: number;
  /** The machine-readable reason of some answers. */
  reason: string | undefined;
  /** The seconds of its Retry-After header, or 0. */
  retryAfter: number;
}

/** The service does not answer, or a connection broke. */
export class Unreachable extends Error {}

/** The log has ended with an error: its runner was lost, or the log is gone. The message says which. */
export class StreamError extends Error {
  constructor(message: string, cursor: number | null, options?: ErrorOptions);
  cursor: number | null;
}
