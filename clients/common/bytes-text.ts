// A number of bytes as people read it.

const UNITS = ["B", "KiB", "MiB", "GiB"];

/** `512 B`, `33 KiB`, `5.3 MiB`. */
export function bytesText(bytes: number): string {
  let [amount, unit] = [bytes, 0];
  for (; amount >= 1024 && unit < UNITS.length - 1; unit++) amount /= 1024;
  return `${amount.toFixed(unit > 0 && amount < 10 ? 1 : 0)} ${UNITS[unit]}`;
}
