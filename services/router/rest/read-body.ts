// Reads the body of a request, up to a limit.
import type { IncomingMessage } from "node:http";
import { ServiceError } from "../../common/errors.ts";

/**
 * @throws ServiceError `body_too_large` as soon as that is known (reading has stopped then), `cancelled` when the client
 *   leaves before its end
 */
export function readBody(req: IncomingMessage, limitBytes: number): Promise<Buffer> {
  const declared = Number(req.headers["content-length"]);
  if (declared > limitBytes) return Promise.reject(tooLarge(limitBytes));
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const stop = (): void => {
      req.off("data", onData).off("end", onEnd).off("error", onBroken).off("close", onBroken);
    };
    const onData = (chunk: Buffer): void => {
      bytes += chunk.length;
      if (bytes > limitBytes) {
        stop();
        req.pause();
        reject(tooLarge(limitBytes));
      } else chunks.push(chunk);
    };
    const onEnd = (): void => {
      stop();
      resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes));
    };
    const onBroken = (): void => {
      stop();
      // The parser's own report of a broken body comes through clientError; nobody listens for this one any more.
      req.on("error", () => {});
      reject(new ServiceError("cancelled", "The client left before the end of its body."));
    };
    req.on("data", onData).on("end", onEnd).on("error", onBroken).on("close", onBroken);
  });
}

function tooLarge(limitBytes: number): ServiceError {
  return new ServiceError("body_too_large", `The body is larger than the ${limitBytes} bytes that this server takes.`);
}
