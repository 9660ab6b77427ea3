// Draws the gaps between tokens over time, one panel per run, with the time of each long prompt shaded. The scale of
// the gaps is logarithmic: relative delays matter, and one outlier must not flatten all others.
import type { Summary } from "../statistics.ts";
import type { Interruption } from "./interruption.ts";

export interface Panel {
  readonly title: string;
  readonly run: Interruption;
}

const WIDTH = 860;
const PANEL_HEIGHT = 190;
const MARGIN = { left: 60, right: 16, top: 44, bottom: 34 };
/** The time shown, around the first prompts. More time would only make the panels harder to read. */
const SHOWN_MS = 2_500;
/** Ends of the scale. Tokens that arrive together have no gap and are drawn at the lower end. */
const LEAST_MS = 0.5;
const MOST_MS = 1_000;

/** @param promptTokens Length of the long prompts. */
export function interruptionSvg(panels: readonly Panel[], promptTokens: number): string {
  const shown = panels.map(({ title, run }) => {
    const originMs = (run.windows[0]?.fromMs ?? 0) - 200;
    const inside = run.gaps.filter(({ atMs }) => atMs >= originMs && atMs <= originMs + SHOWN_MS);
    return { title, run, originMs, inside };
  });
  const height = panels.length * PANEL_HEIGHT + 20;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="system-ui, sans-serif" font-size="12">`,
    `<title>Gaps between tokens of running answers while prompts of ${promptTokens} tokens are prefilled</title>`,
    // A background of its own, so that the picture is readable on light and dark pages.
    `<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>`,
    ...shown.map((panel, index) => panelSvg(panel, index * PANEL_HEIGHT, promptTokens)),
    "</svg>",
    "",
  ].join("\n");
}

const spread = ({ p50, p99 }: Summary): string => `${p50.toFixed(1)} ms (p99 ${p99.toFixed(1)} ms)`;

function panelSvg(
  { title, run, originMs, inside }: Panel & { originMs: number; inside: Interruption["gaps"] },
  top: number,
  promptTokens: number,
): string {
  const [left, right] = [MARGIN.left, WIDTH - MARGIN.right];
  const [high, low] = [top + MARGIN.top, top + PANEL_HEIGHT - MARGIN.bottom];
  const x = (ms: number): number => left + ((ms - originMs) / SHOWN_MS) * (right - left);
  const y = (ms: number): number =>
    low - (Math.log(Math.max(LEAST_MS, ms) / LEAST_MS) / Math.log(MOST_MS / LEAST_MS)) * (low - high);
  const at = (value: number): string => value.toFixed(1);
  const windows = run.windows
    .filter(({ fromMs }) => fromMs < originMs + SHOWN_MS)
    .map(
      ({ fromMs, toMs }) =>
        `<rect x="${at(x(fromMs))}" y="${high}" width="${at(Math.min(right, x(toMs)) - x(fromMs))}" height="${low - high}" fill="#dbeafe"/>`,
    );
  const ticks = [1, 10, 100, 1_000].map(
    (ms) =>
      `<line x1="${left}" x2="${right}" y1="${at(y(ms))}" y2="${at(y(ms))}" stroke="#d1d5db"/><text x="${left - 6}" y="${at(y(ms) + 4)}" text-anchor="end" fill="#374151">${ms} ms</text>`,
  );
  const seconds = Array.from(
    { length: SHOWN_MS / 500 + 1 },
    (_, index) =>
      `<text x="${at(x(originMs + index * 500))}" y="${low + 16}" text-anchor="middle" fill="#374151">${(index / 2).toFixed(1)} s</text>`,
  );
  const dots = inside.map(({ atMs, gapMs }) => `M${at(x(atMs))} ${at(y(gapMs))}h0`).join("");
  const { before, during } = run.summary;
  return [
    `<text x="${left}" y="${top + 20}" font-size="14" font-weight="600" fill="#111827">${title}</text>`,
    `<text x="${left}" y="${top + 36}" fill="#374151">gap between tokens: median ${spread(before)} undisturbed, ${spread(during)} while ${promptTokens} tokens are prefilled (shaded)</text>`,
    ...windows,
    ...ticks,
    ...seconds,
    `<path d="${dots}" stroke="#1d4ed8" stroke-width="2.4" stroke-linecap="round" fill="none"/>`,
  ].join("\n");
}
