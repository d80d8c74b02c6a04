// Optional browser notification when a job ends. Permission is requested only on a click.

import { $, announce, toggle } from "./dom.js";

$("notify").addEventListener("click", async () => {
  if (!toggle($("notify"))) return;
  if ((await Notification.requestPermission()) === "granted") return announce("You will be notified when the job ends");
  toggle($("notify"), false);
  $("notify").disabled = true;
  $("notify").textContent = "Notifications are blocked by the browser";
  return announce($("notify").textContent);
});

/** Shows the button while the job runs, and sends the requested notification when it ends. */
export function notifyOfEnd(isLive, how, name) {
  // Phones have the class, but its constructor throws: https://developer.mozilla.org/en-US/docs/Web/API/Notification/Notification
  const mayNotify = "Notification" in globalThis && !matchMedia("(pointer: coarse)").matches;
  $("notify").hidden = !isLive || !mayNotify;
  if (isLive || $("notify").ariaPressed !== "true") return;
  toggle($("notify"), false);
  const shown = new Notification(`${name}: ${how}`, { body: location.host, tag: location.pathname });
  shown.addEventListener("click", () => (focus(), shown.close()));
}
