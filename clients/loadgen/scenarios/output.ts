// Formats figures for tables and files.
import { writeFileSync } from "node:fs";
import { text } from "../../../services/common/config.ts";

export const jsonFile = text("json", "File to write all figures to.", { optional: true });

/** Two decimals below ten, one above; a dash for a missing measurement. */
export function formatMs(ms: number): string {
  return Number.isNaN(ms) ? "-" : ms.toFixed(Math.abs(ms) < 10 ? 2 : 1);
}

export function formatMib(bytes: number): string {
  return Number.isNaN(bytes) ? "-" : (bytes / 1024 / 1024).toFixed(1);
}

/** NaN becomes null, as JSON has it. */
export function writeJson(file: string | undefined, value: unknown): void {
  if (file !== undefined) writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);
}
