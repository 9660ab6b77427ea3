// Columns of text for people: padded to the widest cell, numbers to the right.

export interface Column<R> {
  readonly title: string;
  readonly align?: "left" | "right";
  cell(row: R): string;
}

/** Lines without a newline at the end. Empty columns are left out when `hideEmpty` is set. */
export function renderTable<R>(rows: readonly R[], columns: readonly Column<R>[], hideEmpty = false): string {
  const padded = columns.flatMap((column) => {
    const cells = rows.map((row) => column.cell(row));
    if (hideEmpty && cells.every((cell) => cell === "")) return [];
    const texts = [column.title, ...cells];
    const width = Math.max(...texts.map((text) => text.length));
    return [texts.map((text) => (column.align === "right" ? text.padStart(width) : text.padEnd(width)))];
  });
  const lines = ["", ...rows].map((_, line) => padded.map((texts) => texts[line]!).join("  "));
  return lines.map((line) => line.trimEnd()).join("\n");
}
