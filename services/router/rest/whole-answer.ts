// A non-streaming response: held until it is complete, so that a failure keeps its status to the end.
import type { ServerResponse } from "node:http";
import type { AnswerSink } from "../relay/relay.ts";
import { writeError, type Answer, type AnswerOptions } from "./stream-answer.ts";

export function wholeAnswer(res: ServerResponse, o: AnswerOptions): Answer {
  const pieces: Buffer[] = [];
  let bodyBytes = 0;
  const sink: AnswerSink = {
    onDrain: undefined,
    start() {},
    write(bytes) {
      pieces.push(bytes);
      return true;
    },
  };
  return {
    sink,
    end() {
      if (res.headersSent || res.destroyed) return;
      const body = pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
      bodyBytes = body.length;
      o.onStart();
      res.writeHead(200, { "content-type": "application/json", ...o.headers(), "content-length": body.length });
      res.once("timeout", () => {
        o.onStall();
        res.destroy();
      });
      res.socket?.setTimeout(o.stallMs);
      res.end(body);
    },
    fail: (error) => writeError(res, error, o.headers()),
    get bodyBytes() {
      return bodyBytes;
    },
  };
}
