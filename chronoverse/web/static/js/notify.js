// A notification at the end of a job, for readers who have asked for one. The browser is asked at their click only.

import { $, announce, toggle } from "./dom.js";

$("notify").addEventListener("click", async () => {
  if (!toggle($("notify"))) return;
  if ((await Notification.requestPermission()) === "granted") return announce("You will be notified when the job ends");
  toggle($("notify"), false);
  $("notify").disabled = true;
  $("notify").textContent = "Notifications are blocked by the browser";
  return announce($("notify").textContent);
});

/** Shows the button while the job runs. When it has ended, readers who have asked for it are told how. */
export function notifyOfEnd(isLive, how, name) {
  // Phones have the class, and its constructor throws there: https://developer.mozilla.org/en-US/docs/Web/API/Notification/Notification
  const mayNotify = "Notification" in globalThis && !matchMedia("(pointer: coarse)").matches;
  $("notify").hidden = !isLive || !mayNotify;
  if (isLive || $("notify").ariaPressed !== "true") return;
  toggle($("notify"), false);
  const shown = new Notification(`${name}: ${how}`, { body: location.host, tag: location.pathname });
  shown.addEventListener("click", () => {
    focus();
    shown.close();
  });
}
