// Runs scenarios with the installed package, as many at a time as come: each line of the input is `[id, name, given]`, each
// line of the output `[id, seen]`.
import { createInterface } from "node:readline";
import * as chronoverse from "chronoverse";
import * as scenarios from "./scenarios.mjs";

let running = 0;
// A signal that nothing holds any more does not abort: undici holds them weakly.
setInterval(() => running && globalThis.gc(), 100).unref();
for await (const line of createInterface({ input: process.stdin })) {
  const [id, name, given] = JSON.parse(line);
  running += 1;
  scenarios[name](chronoverse, given).then((seen) => {
    running -= 1;
    process.stdout.write(`${JSON.stringify([id, seen])}\n`);
  });
}
