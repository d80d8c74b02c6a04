// The workflows that were opened last in this browser.

import { IDENTIFIER } from "./addresses.js";

//: Workflows that are stored.
const MAX_RECENT = 12;
const KEY = "chronoverse.workflows";

export function recentWorkflows() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "[]").filter((each) => IDENTIFIER.test(each));
  } catch {
    return [];
  }
}

export function storeRecent(workflow) {
  const others = recentWorkflows().filter((each) => each !== workflow);
  localStorage.setItem(KEY, JSON.stringify([workflow, ...others].slice(0, MAX_RECENT)));
}
