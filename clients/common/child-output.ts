// What a child writes: all of it goes to its log file, warnings and errors also to the terminal; the last of the other
// lines are kept to say why it died.
import { createWriteStream, openSync, renameSync, type WriteStream } from "node:fs";
import type { Readable } from "node:stream";
import { renderLogLine } from "./log-line.ts";

const LAST_LINES = 12;
/** Of these lines. The log file has the rest. */
const LAST_LINE_CHARS = 300;
/** A line without an end is cut here: memory stays bounded whatever a process writes. */
const LINE_LIMIT = 64 * 1024;

export interface OutputSink {
  /** @param plainIsLoud Whether a line that is no log line is worth a person's attention: on standard error it is. */
  attach(stream: Readable, plainIsLoud: boolean): void;
  /** The last lines that were not printed, oldest first; and forgets them, for the next process has its own. */
  takeUnprinted(): string[];
  /** Resolves when all is on disk. */
  close(): Promise<void>;
}

export interface OutputOptions {
  readonly name: string;
  readonly logFile: string;
  /** At half of it the file is renamed to `<name>.log.1`, in place of the one before. */
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
  /** Of the file before. */
  let closed = Promise.resolve();

  const onLine = (line: string, plainIsLoud: boolean): void => {
    const bytes = Buffer.byteLength(line) + 1;
    if (fileBytes + bytes > options.logLimitBytes / 2) {
      closed = closeLog(file);
      try {
        renameSync(options.logFile, `${options.logFile}.1`);
      } catch {
        // It was removed by hand. Serving goes on.
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
      stream.on("error", () => {}); // The pipe broke: the process is gone, and its `close` event says so.
    },
    takeUnprinted: () => unprinted.splice(0),
    async close() {
      await Promise.all([closed, closeLog(file)]);
    },
  };
}

/** Opened at once, so that the file is there to be renamed. Undefined where it can't be: serving goes on without. */
function openLog(path: string): WriteStream | undefined {
  try {
    const file = createWriteStream(path, { fd: openSync(path, "a", 0o600) });
    // A full disk must not end the serving. The terminal still gets the warnings.
    return file.on("error", () => {});
  } catch {
    return undefined;
  }
}

/** Resolves when all of it is on disk, or can't be. */
function closeLog(file: WriteStream | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (file === undefined || file.closed) return resolve();
    file.once("close", resolve).end();
  });
}
