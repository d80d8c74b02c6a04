// A workflow's watches and their delivery states, for readers who can send a test message.

import { pause } from "../client/request.js";
import { announce, button, make } from "./dom.js";
import { ask, claims, get, refusal } from "./session.js";

function stateText(watch) {
  const why = watch.error ? `: ${watch.error}` : "";
  return `${watch.state}${why}${watch.waiting ? `, ${watch.waiting} waiting` : ""}`;
}

/** Sends a test message, and waits 20 s for its delivery. Resolves to the result in words. */
async function sendTest(path) {
  const answer = await ask(`${path}/test`, { method: "POST" });
  if (!answer.ok) return `not sent: ${(await refusal(answer)).message}`;
  const before = await answer.json();
  let body = before;
  for (let look = 0; look < 40; look += 1) {
    await pause(500);
    ({ body } = await get(path));
    if (body.delivered_at !== before.delivered_at) return "delivered";
    if (body.error && body.failing_since !== before.failing_since) return stateText(body);
  }
  // After a failure, the next attempt can take an hour.
  return body.error ? stateText(body) : "not delivered yet: is chronoverse notify running?";
}

export async function showWatches(workflow, place) {
  if (![claims().scope ?? ""].flat().join(" ").split(" ").includes("logs:admin")) return;
  const path = `/workflows/${workflow}/watches`;
  const items = (await get(path)).body.watches.map((watch) => {
    const state = make("span", "quiet", stateText(watch));
    const test = button(async () => {
      test.disabled = true;
      state.textContent = "waiting for the delivery";
      state.textContent = await sendTest(`${path}/${watch.id}`).catch((error) => error.message);
      announce(`${watch.id}: ${state.textContent}`);
      test.disabled = false;
    }, "Send a test");
    const what = ` on ${watch.on} to ${new URL(watch.url).host}, `;
    return make("li", "", make("b", "", watch.id), what, state, " ", test);
  });
  place.replaceChildren(make("h2", "", "Watches"), make("ul", "", ...items));
  place.hidden = !items.length;
}
