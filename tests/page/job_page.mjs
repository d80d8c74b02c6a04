// A job's page in the minimal browser. A test fills `routes`, by the part of the address after the job's, and opens it.

import { $ } from "./document.mjs";

export const line = (number, message = `line ${number}`) => ({ sequence_num: number, message, timestamp: "2026-03-03T10:00:05Z", stream: "stdout" });
export const routes = {};
Object.assign(globalThis, {
  matchMedia: () => ({ matches: false }),
  requestAnimationFrame: (draw) => setTimeout(draw, 0),
  fetch: async (request, { signal = request.signal } = {}) => {
    const { pathname, searchParams } = new URL(request.url);
    return routes[pathname.replace("/workflows/w/jobs/j", "")]?.(searchParams, signal) ?? Response.json({ status: 404 }, { status: 404 });
  },
});
Object.assign(document.documentElement.dataset, { errors: "error", harmless: "0 errors" });
sessionStorage.setItem("chronoverse.token", "token");
location.pathname = "/ui/workflows/%77/jobs/%6A";
Object.assign($("log"), { clientHeight: 200, clientWidth: 800, scrollTop: 0 });
Object.assign($("q"), { value: "" });

export const rows = () => $("log").querySelector(".rows").children.filter(({ dataset }) => dataset.number);
export const find = (text) => ($("q").value = text, $("q").dispatchEvent(Object.assign(new Event("keydown"), { key: "Enter" })));
export const open = () => import("../../chronoverse/web/static/js/job.js");
