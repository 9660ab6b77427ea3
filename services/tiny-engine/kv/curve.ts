// Only engines that know the same key may send and read KV. ZeroMQ's CURVE checks that in the handshake, before the first
// message is read, and encrypts what follows. A client must know the server's public key, which is never published here:
// knowing it is the proof. Source: RFC 26/CurveZMQ of ZeroMQ.
import { createHash, createPrivateKey, createPublicKey } from "node:crypto";

/** In Z85, as zeromq takes them. */
export interface CurveKeys {
  readonly publicKey: string;
  readonly secretKey: string;
}

/** PKCS #8 of an X25519 key, up to its 32 bytes (RFC 8410). */
const PKCS8_HEAD = Buffer.from("302e020100300506032b656e04220420", "hex");
const Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/** The pair of keys of all engines that share `key`. */
export function curveKeys(key: string): CurveKeys {
  const secret = createHash("sha256").update(`tandem-kv-curve\n${key}`).digest();
  const privateKey = createPrivateKey({ key: Buffer.concat([PKCS8_HEAD, secret]), format: "der", type: "pkcs8" });
  const publicKey = createPublicKey(privateKey).export({ format: "der", type: "spki" }).subarray(-32);
  return { publicKey: z85(publicKey), secretKey: z85(secret) };
}

/** RFC 32 of ZeroMQ: five characters for four bytes. */
function z85(bytes: Buffer): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 4) {
    const word = bytes.readUInt32BE(at);
    for (let power = 85 ** 4; power >= 1; power /= 85) text += Z85[Math.floor(word / power) % 85];
  }
  return text;
}
