// A job's profile, shown in the time strip and on the card of a failed or running job.

import { pause } from "../client/request.js";
import { againstLabels } from "./addresses.js";
import { $, announce } from "./dom.js";
import { span, tookMs } from "./format.js";
import { get, token } from "./session.js";
import { SHORT } from "./strip.js";
import { code, linkToLine, openCard } from "./summary.js";
import { runningTexts, slowerTexts, wholeStrip } from "./timeline.js";

const LOOK_MS = 1000;

export function makeProfile(path, log, strip) {
  let body = null;
  let answeredAt = 0;
  let current = 0;
  //: The strip's first line and its time, which is still needed when the line is no longer in memory.
  let head = {};

  /** Requests the profile: for a live job, every 30 s while the tab is visible and lines arrive; for an ended job, up to three times. */
  async function follow(isLive) {
    for (let failures = 0; failures < 3; ) {
      while (document.hidden || !token()) await pause(LOOK_MS);
      const [began, epoch, wasLive] = [performance.now(), current, isLive()];
      const answer = await ask();
      const rest = Math.max(30_000, 50 * (performance.now() - began));
      failures = answer || wasLive ? 0 : failures + 1;
      const isNewest = answer !== null && epoch === current;
      if (isNewest) answeredAt = performance.now();
      if (isNewest) show(answer);
      if (isNewest && !wasLive) return;
      const isDue = () => !isLive() || !isNewest || epoch !== current || log.last > answer.job.last_sequence_num;
      while (!(wasLive && !isLive()) && !(performance.now() - began > rest && isDue())) await pause(LOOK_MS);
    }
  }

  /** The profile, or null if it is unavailable. Each request scans more lines, for up to a second. */
  async function ask() {
    for (let requests = 0; requests < 40; requests += 1) {
      const answer = await get(`${path}/profile?${new URLSearchParams(againstLabels())}`).then((got) => got.body, () => null);
      if (!answer || answer.complete) return answer;
    }
    return null;
  }

  /** Discards the texts of lines, because some were redacted. */
  function forget() {
    current += 1;
    if (body) show({ ...body, slower: [] });
  }

  /** Shows a running job's time compared with the usual one, and an unusually long silence. `ms` is null if it is not running. */
  function showRunning(ms) {
    if (ms === null) return;
    openCard("RUNNING");
    const { job, running, usual } = body ?? {};
    const age = (performance.now() - answeredAt) / 1000;
    const { end, silent } = running ? runningTexts(running, age, log.last <= job.last_sequence_num) : {};
    if (silent && $("silent").hidden) announce(silent);
    $("silent").hidden = !silent;
    const isOver = Boolean(usual) && ms > 1000 * usual.most;
    const scale = usual && Math.max(1100 * usual.most, ms);
    const texts = {
      sofar: span(ms),
      usual: [usual && usualText(usual), isOver ? `${span(ms - 1000 * usual.most)} over` : end].filter(Boolean).join(" · "),
      silent: silent ?? "",
    };
    for (const [id, text] of Object.entries(texts)) if ($(id).textContent !== text) $(id).textContent = text;
    $("usual").classList.toggle("over", isOver);
    $("gauge").className = `gauge${usual ? "" : " unknown"}${isOver ? " over" : ""}`;
    if (!usual) return;
    $("gauge").ariaValueMax = String(Math.round(scale / 1000));
    $("gauge").ariaValueNow = String(Math.round(ms / 1000));
    $("gauge").ariaValueText = `${texts.sofar}, ${texts.usual}`;
    const share = (part) => `${Math.min(100, (100 * part) / scale).toFixed(1)}%`;
    const [range, done] = $("gauge").children;
    done.style.width = share(ms);
    range.style.left = share(1000 * usual.least);
    range.style.width = share(Math.max(1000 * (usual.most - usual.least), scale / 100));
  }

  function show(answer) {
    body = answer;
    const number = body.strip?.[0]?.[1];
    const at = log.get(number)?.timestamp;
    if (at || number !== head.number) head = { number, at };
    strip.show({ ...body, strip: wholeStrip(body.strip, tookMs(body.job), body.job.started_at, head.at) });
    const { job, seconds, usual, slower } = body;
    const worst = slower.find(({ after }) => after);
    // A job that succeeded in the usual time needs no explanation, and a short job's page has no place for one.
    $("slower").hidden = !worst || (job.status === "COMPLETED" && seconds <= Math.max(SHORT, usual?.most ?? 0));
    if (job.status === "COMPLETED") openCard($("slower").hidden ? null : "COMPLETED");
    if ($("slower").hidden) return;
    const [before, after] = slowerTexts(worst);
    $("slower").replaceChildren(linkToLine(worst.after.sequence_num, before, code(worst.after), after));
  }

  return { follow, forget, showRunning };
}

function usualText({ least, most }) {
  const [low, high] = [least, most].map((seconds) => span(1000 * seconds));
  if (least < 0.05 * most) return `usually up to ${high}`;
  return `usually ${low === high ? low : `${low} to ${high}`}`;
}
