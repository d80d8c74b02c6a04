// Reads the stream at STREAM_URL to its end with fetch and eventsource-parser; prints each line as JSON [id, message].
import { EventSourceParserStream } from "eventsource-parser/stream";

const authorization = `Bearer ${process.env.STREAM_TOKEN}`;
const response = await fetch(process.env.STREAM_URL, { headers: { authorization } });
const events = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
const lines = [];
for await (const { event, data, id } of events) {
  if (event === "log") lines.push(JSON.stringify([id, JSON.parse(data).message]));
}
process.stdout.write(`${lines.join("\n")}\n`);
