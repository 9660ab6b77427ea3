// The last lines that a program wrote: for the message when it fails, and for the log while it runs.

/** Longest line that is kept and passed to a listener. vLLM logs all its settings in one line of 5,000 characters. */
const LONGEST_KEPT = 2_000;
const LONGEST_LINE = 32_000;

export interface OutputTail {
  push(chunk: Buffer): void;
  /** Oldest first. */
  lines(): readonly string[];
}

/**
 * @param limit Lines kept.
 * @param hide Texts that are redacted, such as a token.
 */
export function createOutputTail(
  limit: number,
  onLine: (line: string) => void,
  hide: readonly string[] = [],
): OutputTail {
  const secrets = hide.filter((text) => text !== "");
  const kept: string[] = [];
  let rest = "";
  const shown = (written: string): string =>
    secrets.reduce((line, secret) => line.replaceAll(secret, "[hidden]"), written);
  const add = (written: string): void => {
    if (written.trim() === "") return;
    const line = shown(written);
    kept.push(line.slice(0, LONGEST_KEPT));
    if (kept.length > limit) kept.shift();
    onLine(line);
  };
  return {
    push(chunk) {
      // A character cut between two reads is garbled in the log; nothing else depends on it.
      const parts = (rest + chunk.toString("utf8")).split("\n");
      rest = parts.pop()!.slice(0, LONGEST_LINE);
      // A progress bar returns to the start of its line: only its last state counts.
      for (const part of parts) add(lastOf(part).slice(0, LONGEST_LINE));
    },
    lines: () => (rest.trim() === "" ? [...kept] : [...kept, shown(rest).slice(0, LONGEST_KEPT)]),
  };
}

function lastOf(line: string): string {
  const whole = line.replace(/\r+$/, "");
  return whole.slice(whole.lastIndexOf("\r") + 1);
}

/** The lines that say what went wrong: from the last error or traceback on, or else the last 8 lines. */
export function usefulLines(lines: readonly string[]): readonly string[] {
  const blamed = lines.findLastIndex((line) =>
    /\b(error|exception|traceback|fatal|panic|cannot|can't|unknown)\b|Error:/i.test(line),
  );
  return blamed === -1 ? lines.slice(-8) : lines.slice(Math.max(0, blamed - 6), blamed + 6);
}
