// Reads the stream at STREAM_URL to its end with the EventSource of npm; prints each line as JSON [id, message].
import { EventSource } from "eventsource";

const authorization = `Bearer ${process.env.STREAM_TOKEN}`;
const source = new EventSource(process.env.STREAM_URL, {
  fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, authorization } }),
});
const lines = [];
source.addEventListener("log", ({ data, lastEventId }) => {
  lines.push(JSON.stringify([lastEventId, JSON.parse(data).message]));
});
source.addEventListener("end", () => {
  source.close();
  process.stdout.write(`${lines.join("\n")}\n`);
});
source.addEventListener("error", ({ message, data }) => {
  source.close();
  process.stderr.write(`${message ?? data}\n`);
  process.exitCode = 1;
});
