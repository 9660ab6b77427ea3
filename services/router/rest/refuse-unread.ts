// Answers a client that is still sending. A socket that is closed with unread bytes in it resets the connection, and a
// reset makes the client's kernel drop the answer it has not read yet. So: the whole answer first, then what still
// comes is read and thrown away for a while, and only then the connection is closed (nginx: lingering_close).
import type { IncomingMessage, ServerResponse } from "node:http";
import { systemClock } from "../../common/clock.ts";
import { errorAnswer } from "./errors.ts";

const LINGER_MS = 5_000;
/** Enough for a client that only looks at the answer when it has sent everything. */
const LINGER_BYTES = 256 * 1024 * 1024;

export function refuseUnread(req: IncomingMessage, res: ServerResponse, error: unknown, clock = systemClock): number {
  const { status, headers, body } = errorAnswer(error);
  res.writeHead(status, { ...headers, "content-length": Buffer.byteLength(body), connection: "close" });
  // Not `end`: that would close the socket right behind the answer.
  res.write(body);
  let bytes = 0;
  const close = (): void => {
    timer.cancel();
    res.end();
  };
  const timer = clock.setTimer(LINGER_MS, () => req.socket.destroy());
  req.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > LINGER_BYTES) req.socket.destroy();
  });
  req.once("end", close).once("close", close).once("error", close);
  req.resume();
  return status;
}
