// Columns of text for people: padded to the widest cell, numbers to the right.

export interface Column<R> {
  readonly title: string;
  readonly align?: "left" | "right";
  cell(row: R): string;
}

/** Lines without a newline at the end. Empty columns are left out when `hideEmpty` is set. */
export function renderTable<R>(rows: readonly R[], columns: readonly Column<R>[], hideEmpty = false): string {
  const cells = columns.map((column) => rows.map((row) => column.cell(row)));
  const shown = columns
    .map((_, index) => index)
    .filter((index) => !hideEmpty || cells[index]!.some((cell) => cell !== ""));
  const widths = shown.map((index) =>
    Math.max(columns[index]!.title.length, ...cells[index]!.map((cell) => cell.length)),
  );
  const line = (texts: readonly string[]): string =>
    texts
      .map((text, position) => {
        const width = widths[position]!;
        return columns[shown[position]!]!.align === "right" ? text.padStart(width) : text.padEnd(width);
      })
      .join("  ")
      .trimEnd();
  const head = line(shown.map((index) => columns[index]!.title));
  return [head, ...rows.map((_, row) => line(shown.map((index) => cells[index]![row]!)))].join("\n");
}
