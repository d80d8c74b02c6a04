// The icons: an area in the text's colour, lines in the background colour, and lines in the text's colour.

const CIRCLE = "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1z";
const RING = "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2z";
const ICONS = {
  FAILED: ["M4 1h8a3 3 0 0 1 3 3v8a3 3 0 0 1-3 3H4a3 3 0 0 1-3-3V4a3 3 0 0 1 3-3z", "m5.5 5.5 5 5m0-5-5 5", ""],
  COMPLETED: [CIRCLE, "m5 8.2 2.2 2.2 4-4.6", ""],
  RUNNING: ["M8 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5z", "", RING],
  PENDING: ["", "", RING],
  LOST: ["M8 .5 15.5 8 8 15.5.5 8z", "M8 4.5v4m0 2.6v.1", ""],
  CANCELED: [CIRCLE, "M5 8h6", ""],
  good: ["M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11z", "", ""],
  branch: ["", "", "M4 1.7a1.8 1.8 0 1 0 0 3.6 1.8 1.8 0 0 0 0-3.6zM4 10.7a1.8 1.8 0 1 0 0 3.6 1.8 1.8 0 0 0 0-3.6zM12 3.2a1.8 1.8 0 1 0 0 3.6 1.8 1.8 0 0 0 0-3.6zM4 5.5v5M12 7c0 3-5 2-7.5 3.8"],
  account: ["", "", "M8 2.5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM2.5 14c.6-3 2.8-4.5 5.5-4.5s4.900 1.5 5.5 4.5"],
};
const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const attributes = { class: "i", viewBox: "0 0 16 16", "aria-hidden": "true" };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  for (const [at, d] of ICONS[name].entries()) {
    if (!d) continue;
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    path.setAttribute("class", ["area", "hole", "line"][at]);
    svg.append(path);
  }
  return svg;
}
