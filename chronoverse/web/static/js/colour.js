// Terminal colours, adjusted for readable text on the page's light and dark backgrounds.

//: The sixteen colours as backgrounds. These are the terminal's own, because areas need less contrast than text.
const BACKGROUNDS = ["1b1f24", "b4232a", "1a7f37", "9a6700", "0b57c2", "8430a8", "0a6570", "c8ced5"]
  .concat(["57606a", "e5534b", "46954a", "c69026", "539bf5", "b083f0", "39c5cf", "ffffff"]);
//: WCAG AA requires a contrast of 4.5. The margin is for tinted rows.
const CONTRAST = 5;

const parse = (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
const css = (rgb) => `rgb(${rgb.join(" ")})`;

export function indexed(index) {
  if (index >= 232) return Array(3).fill(8 + (index - 232) * 10);
  const level = (n) => (n ? 55 + n * 40 : 0);
  return [Math.floor((index - 16) / 36), Math.floor((index - 16) / 6) % 6, (index - 16) % 6].map(level);
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

export function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

/** `ink` if it is readable on the background `ground`, otherwise the nearest readable colour. */
function readable(ink, ground) {
  if (contrast(ink, ground) >= CONTRAST) return ink;
  const toward = contrast([0, 0, 0], ground) > contrast([255, 255, 255], ground) ? 0 : 255;
  for (let share = 0.15; share < 1; share += 0.15) {
    const mixed = ink.map((part) => Math.round(part + (toward - part) * share));
    if (contrast(mixed, ground) >= CONTRAST) return mixed;
  }
  return [toward, toward, toward];
}

const cache = new Map();

/** A colour of page.css, `light-dark(#…, #…)`, as RGB for the light and the dark page. */
function themed(name) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(name);
  return value.match(/[0-9a-f]{6}/g).map(parse);
}

/** The colours of a style as CSS values: `{ink, ground}`. `ground` is undefined for the page's background. */
export function paint(style) {
  // These are readable on the page's background.
  if (typeof style.ink === "number" && style.ground === null && !style.inverse) return { ink: `var(--ink${style.ink})` };
  const key = `${style.ink} ${style.ground} ${style.inverse}`;
  let found = cache.get(key);
  if (!found) {
    if (cache.size >= 2000) cache.clear();
    const page = themed("--ground");
    let inks = Array.isArray(style.ink) ? [style.ink, style.ink] : themed(style.ink === null ? "--ink" : `--ink${style.ink}`);
    const own = Array.isArray(style.ground) ? style.ground : style.ground !== null && parse(BACKGROUNDS[style.ground]);
    let grounds = own ? [own, own] : page;
    if (style.inverse) [inks, grounds] = [grounds, inks];
    const both = (colours) => `light-dark(${colours.map(css).join(", ")})`;
    found = { ink: both(inks.map((ink, theme) => readable(ink, grounds[theme]))), ground: own || style.inverse ? both(grounds) : undefined };
    cache.set(key, found);
  }
  return found;
}
