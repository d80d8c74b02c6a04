// A terminal's colours, adjusted so that text is readable on the page's light and dark backgrounds.

//: The page's background and text colours. page.css has the same.
const GROUND = { light: [255, 255, 255], dark: [14, 17, 22] };
const INK = { light: [31, 35, 40], dark: [215, 221, 228] };
//: The sixteen colours of a terminal, as text on the page's background. page.css has the same.
const PALETTE = {
  light: ["1f2328", "b4232a", "17692e", "7a5200", "0b57c2", "8430a8", "0a6570", "5b646d"]
    .concat(["57606a", "b4232a", "17692e", "7a5200", "0b57c2", "8430a8", "0a6570", "5b646d"]),
  dark: ["9aa4af", "ff8a80", "6fcf7f", "e3b341", "79b8ff", "d2a8ff", "56d4dd", "d7dde4"]
    .concat(["9aa4af", "ff9f97", "8fdd9b", "f0c969", "9ccbff", "dfc1ff", "7fe0e7", "ffffff"]),
};
//: The sixteen colours as backgrounds. These are a terminal's own, because areas need less contrast than letters.
const BACKGROUNDS = ["1b1f24", "b4232a", "1a7f37", "9a6700", "0b57c2", "8430a8", "0a6570", "c8ced5"]
  .concat(["57606a", "e5534b", "46954a", "c69026", "539bf5", "b083f0", "39c5cf", "ffffff"]);
//: WCAG AA asks for a contrast of 4.5. The rest is for the tints that rows may have.
const CONTRAST = 5;
//: Combinations of colours that are cached. A log with more of them has its colours computed again.
const CACHE_SIZE = 2000;

const parse = (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
const css = (rgb) => `rgb(${rgb.join(" ")})`;

/** The RGB value of a colour index from 16 to 255. */
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

/** `ink` if it is readable on the background `ground`, otherwise the nearest colour that is. */
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

/** The CSS custom properties of a style. One of the sixteen colours on the page's background needs none: it is a class. */
export function paint(style) {
  const key = `${style.ink} ${style.ground} ${style.inverse}`;
  let found = cache.get(key);
  if (!found) {
    if (cache.size >= CACHE_SIZE) cache.clear();
    found = {};
    for (const theme of ["light", "dark"]) {
      let ink = style.ink === null ? INK[theme] : Array.isArray(style.ink) ? style.ink : parse(PALETTE[theme][style.ink]);
      let ground = style.ground === null ? null : Array.isArray(style.ground) ? style.ground : parse(BACKGROUNDS[style.ground]);
      if (style.inverse) [ink, ground] = [ground ?? GROUND[theme], ink];
      found[`--ink-${theme}`] = css(readable(ink, ground ?? GROUND[theme]));
      if (ground) found[`--ground-${theme}`] = css(ground);
    }
    cache.set(key, found);
  }
  return found;
}
