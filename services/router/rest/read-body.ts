// Reads the body of a request, up to its own limit and to what is left for all.
import type { IncomingMessage } from "node:http";
import { ServiceError } from "../../common/errors.ts";
import { REQUEST_HEADERS } from "../serving/headers.ts";
import type { BodyShare } from "./body-budget.ts";

/**
 * @param share Takes the bytes as they arrive; the caller that opened the share releases it.
 * @throws ServiceError `body_too_large` or `queue_full` as soon as that is known (reading has stopped then), `cancelled`
 *   when the client leaves before its end
 */
export function readBody(req: IncomingMessage, limitBytes: number, share: BodyShare): Promise<Buffer> {
  const declared = Number(req.headers[REQUEST_HEADERS.contentLength.name]);
  if (declared > limitBytes) return Promise.reject(tooLarge(limitBytes));
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const stop = (): void => {
      req.off("data", onData).off("end", onEnd).off("error", onBroken).off("close", onBroken);
    };
    const onData = (chunk: Buffer): void => {
      bytes += chunk.length;
      try {
        if (bytes > limitBytes) throw tooLarge(limitBytes);
        share.take(chunk.length);
        chunks.push(chunk);
      } catch (error) {
        stop();
        req.pause();
        reject(error);
      }
    };
    const onEnd = (): void => {
      stop();
      resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes));
    };
    const onBroken = (): void => {
      stop();
      // The parser reports a broken body by clientError; this event has no listener any more.
      req.on("error", () => {});
      reject(new ServiceError("cancelled", "The client left before the end of its body."));
    };
    req.on("data", onData).on("end", onEnd).on("error", onBroken).on("close", onBroken);
  });
}

function tooLarge(limitBytes: number): ServiceError {
  return new ServiceError(
    "body_too_large",
    `The body is larger than the ${limitBytes} bytes that this server accepts.`,
  );
}
