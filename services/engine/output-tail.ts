// The last lines that an engine wrote: for the message when it fails, and for the log while it runs.

const LONGEST_LINE = 2_000;

export interface OutputTail {
  push(chunk: Buffer): void;
  /** Oldest first. */
  lines(): readonly string[];
}

/** @param limit Lines kept. */
export function createOutputTail(limit: number, onLine: (line: string) => void): OutputTail {
  const kept: string[] = [];
  let rest = "";
  const add = (line: string): void => {
    if (line.trim() === "") return;
    kept.push(line);
    if (kept.length > limit) kept.shift();
    onLine(line);
  };
  return {
    push(chunk) {
      // A character cut between two reads is garbled in the log; nothing else depends on it.
      const parts = (rest + chunk.toString("utf8")).split("\n");
      rest = parts.pop()!.slice(0, LONGEST_LINE);
      for (const part of parts) add(part.replace(/\r$/, "").slice(0, LONGEST_LINE));
    },
    lines: () => (rest.trim() === "" ? [...kept] : [...kept, rest]),
  };
}

/** Of an engine's last lines, those that say what went wrong: from the last error or traceback on, else the last 8. */
export function usefulLines(lines: readonly string[]): readonly string[] {
  const blamed = lines.findLastIndex((line) => /\b(error|exception|traceback|fatal|panic|cannot|can't|unknown)\b|Error:/i.test(line));
  return blamed === -1 ? lines.slice(-8) : lines.slice(Math.max(0, blamed - 6), blamed + 6);
}
