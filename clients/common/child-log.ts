// The output of a child. All of it goes to the child's log file; warnings and errors also go to the terminal. The last
// of the other lines are kept to show why the child died.
import { createWriteStream, openSync, renameSync, type WriteStream } from "node:fs";
import { finished } from "node:stream/promises";
import type { ReadOutput } from "./child.ts";
import { renderLogLine } from "./log-line.ts";

/** Lines kept, and characters of each. The log file has the rest. */
const LAST_LINES = 12;
const LAST_LINE_CHARS = 300;
/** An endless line is cut here, so that memory stays bounded whatever a process writes. */
const LINE_LIMIT = 64 * 1024;

export interface ChildLog {
  /** A line of standard error that is not a log line is worth a person's attention. */
  readonly read: ReadOutput;
  /** Returns the last unprinted lines, oldest first, and forgets them, because the next process has its own. */
  takeUnprinted(): string[];
  /** Resolves when everything is on disk. */
  close(): Promise<void>;
}

export interface ChildLogOptions {
  readonly file: string;
  /** At half of this size the file is renamed to `<name>.log.1`, replacing the previous one. */
  readonly limitBytes: number;
  /** Prints every line, not only warnings and errors. */
  readonly verbose?: boolean;
  readonly colour?: boolean;
  /** Prints one line on the terminal. */
  print?(line: string): void;
}

export function createChildLog(o: ChildLogOptions): ChildLog {
  const unprinted: string[] = [];
  let file = openLog(o.file);
  let fileBytes = 0;
  let closed = Promise.resolve();

  const onLine = (line: string, isError: boolean): void => {
    const bytes = Buffer.byteLength(line) + 1;
    if (fileBytes + bytes > o.limitBytes / 2) {
      closed = closeLog(file);
      try {
        renameSync(o.file, `${o.file}.1`);
      } catch {
        // The file was removed by hand. Serving continues.
      }
      file = openLog(o.file);
      fileBytes = 0;
    }
    fileBytes += bytes;
    file?.write(`${line}\n`);
    const { text, isLoud, isSettings } = renderLogLine(line, o.colour === true, isError);
    if (o.verbose === true || isLoud) return o.print?.(text);
    if (isSettings === true) return;
    unprinted.push(text.length > LAST_LINE_CHARS ? `${text.slice(0, LAST_LINE_CHARS)}…` : text);
    if (unprinted.length > LAST_LINES) unprinted.shift();
  };

  return {
    read(stream, isError) {
      let rest = "";
      stream.setEncoding("utf8").on("data", (text: string) => {
        const lines = (rest + text).split("\n");
        rest = lines.pop()!;
        if (rest.length > LINE_LIMIT) {
          lines.push(rest.slice(0, LINE_LIMIT));
          rest = "";
        }
        for (const line of lines) if (line !== "") onLine(line, isError);
      });
      stream.on("close", () => {
        if (rest !== "") onLine(rest, isError);
        rest = "";
      });
      stream.on("error", () => {}); // The pipe broke because the process is gone; its `close` event reports that.
    },
    takeUnprinted: () => unprinted.splice(0),
    async close() {
      await Promise.all([closed, closeLog(file)]);
    },
  };
}

/**
 * Opens the file at once, so that it exists when it is renamed. Undefined on failure: serving continues without a log
 * file.
 */
function openLog(path: string): WriteStream | undefined {
  try {
    const file = createWriteStream(path, { fd: openSync(path, "a", 0o600) });
    // A full disk must not stop serving. The terminal still gets the warnings.
    return file.on("error", () => {});
  } catch {
    return undefined;
  }
}

/** Resolves when everything is written to disk, or writing failed. */
async function closeLog(file: WriteStream | undefined): Promise<void> {
  if (file !== undefined) await finished(file.end()).catch(() => {});
}
