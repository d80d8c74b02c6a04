// The page of a job that the reader cannot read, or that was deleted.

import { equal } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";
import { open, routes } from "./job_page.mjs";

routes["/events"] = () => Response.json({ status: 404, detail: "Not found, or no access." }, { status: 404 });
const claims = btoa(JSON.stringify({ sub: "ann", workflows: ["build"] }));
sessionStorage.setItem("chronoverse.token", `x.${claims}.x`);
await open();

test("a page without a log says for whom, and links to all jobs", async () => {
  await until(() => $("notice").textContent === "Not found, or no access. All jobs · Signed in as ann. This token is for build. ");
  equal($("notice").links[0].href, "/ui/workflows/w");
});
