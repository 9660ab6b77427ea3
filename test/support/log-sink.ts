// A log that a test can read, and that prints nothing.
import { Writable } from "node:stream";
import { createLog, type Log } from "../../services/common/log.ts";

export interface LoggedLine {
  readonly level: string;
  readonly msg: string;
  readonly [field: string]: unknown;
}

export interface LogSink {
  readonly log: Log;
  readonly lines: readonly LoggedLine[];
  /** Lines of this event. */
  events(event: string): LoggedLine[];
}

export function logSink(): LogSink {
  const lines: LoggedLine[] = [];
  const out = new Writable({
    decodeStrings: false,
    write(chunk: string, _encoding, done) {
      lines.push(JSON.parse(chunk) as LoggedLine);
      done();
    },
  });
  return {
    log: createLog({ name: "test", level: "debug", format: "json", out }),
    lines,
    events: (event) => lines.filter((line) => line.msg === event),
  };
}

/** For tests that don't look at the log. */
export const silentLog: Log = logSink().log;
