// The clients' API key.
import { createHash, timingSafeEqual } from "node:crypto";
import { ServiceError } from "../../common/errors.ts";

/**
 * A check of the `authorization` header. Compares hashes: equally long, so in constant time whatever was sent.
 *
 * @param apiKey "" lets everyone in.
 */
export function authorizer(apiKey: string): (authorization: string | undefined) => void {
  if (apiKey === "") return () => {};
  const expected = hash(apiKey);
  return (authorization) => {
    const given = /^Bearer +(.+)$/i.exec(authorization ?? "")?.[1];
    if (given === undefined) {
      throw new ServiceError(
        "unauthenticated",
        "You didn't provide an API key. Send it in a header: `Authorization: Bearer YOUR_KEY`.",
      );
    }
    if (!timingSafeEqual(hash(given.trim()), expected))
      throw new ServiceError("unauthenticated", "Incorrect API key provided.");
  };
}

function hash(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
