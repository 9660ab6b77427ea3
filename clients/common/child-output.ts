// The output of a child. All of it goes to the child's log file; warnings and errors also go to the terminal. The last
// of the other lines are kept to show why the child died.
import { createWriteStream, openSync, renameSync, type WriteStream } from "node:fs";
import type { Readable } from "node:stream";
import { renderLogLine } from "./log-line.ts";

const LAST_LINES = 12;
/** Number of these lines. The log file has the rest. */
const LAST_LINE_CHARS = 300;
/** An endless line is cut here, so that memory stays bounded whatever a process writes. */
const LINE_LIMIT = 64 * 1024;

export interface OutputSink {
  /** @param plainIsLoud Whether a line that is not a log line is worth a person's attention, as on standard error. */
  attach(stream: Readable, plainIsLoud: boolean): void;
  /** Returns the last unprinted lines, oldest first, and forgets them, because the next process has its own. */
  takeUnprinted(): string[];
  /** Resolves when everything is on disk. */
  close(): Promise<void>;
}

export interface OutputOptions {
  readonly name: string;
  readonly logFile: string;
  /** At half of this size the file is renamed to `<name>.log.1`, replacing the previous one. */
  readonly logLimitBytes: number;
  /** Show every line, not only warnings and errors. */
  readonly verbose: boolean;
  /** Prints one line on the terminal. */
  print(line: string): void;
  readonly colour: boolean;
}

export function createOutput(options: OutputOptions): OutputSink {
  const unprinted: string[] = [];
  let file = openLog(options.logFile);
  let fileBytes = 0;
  /** Size of the previous file. */
  let closed = Promise.resolve();

  const onLine = (line: string, plainIsLoud: boolean): void => {
    const bytes = Buffer.byteLength(line) + 1;
    if (fileBytes + bytes > options.logLimitBytes / 2) {
      closed = closeLog(file);
      try {
        renameSync(options.logFile, `${options.logFile}.1`);
      } catch {
        // The file was removed by hand. Serving continues.
      }
      file = openLog(options.logFile);
      fileBytes = 0;
    }
    fileBytes += bytes;
    file?.write(`${line}\n`);
    const rendered = renderLogLine(line, options.colour, plainIsLoud);
    if (options.verbose || rendered.isLoud) {
      options.print(rendered.text);
      return;
    }
    if (rendered.isSettings === true) return;
    const { text } = rendered;
    unprinted.push(text.length > LAST_LINE_CHARS ? `${text.slice(0, LAST_LINE_CHARS)}…` : text);
    if (unprinted.length > LAST_LINES) unprinted.shift();
  };

  return {
    attach(stream, plainIsLoud) {
      stream.setEncoding("utf8");
      let rest = "";
      stream.on("data", (text: string) => {
        const lines = (rest + text).split("\n");
        rest = lines.pop()!;
        if (rest.length > LINE_LIMIT) {
          lines.push(rest.slice(0, LINE_LIMIT));
          rest = "";
        }
        for (const line of lines) if (line !== "") onLine(line, plainIsLoud);
      });
      stream.on("close", () => {
        if (rest !== "") onLine(rest, plainIsLoud);
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
function closeLog(file: WriteStream | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (file === undefined || file.closed) return resolve();
    file.once("close", resolve).end();
  });
}
