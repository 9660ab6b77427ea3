// A number of bytes as people read it.

/** `512 B`, `33 KiB`, `5.3 MiB`. */
export function bytesText(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const [amount, unit] =
    bytes < 1024 ** 2
      ? [bytes / 1024, "KiB"]
      : bytes < 1024 ** 3
        ? [bytes / 1024 ** 2, "MiB"]
        : [bytes / 1024 ** 3, "GiB"];
  return `${amount.toFixed(amount < 10 ? 1 : 0)} ${unit}`;
}
