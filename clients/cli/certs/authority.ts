// A certificate authority for development and tests. The keys are ECDSA P-256, which every TLS library takes.
// Written here, because the packages that make certificates bring twenty others. Source: RFC 5280.
import {
  type KeyObject,
  X509Certificate,
  createHash,
  createPrivateKey,
  generateKeyPairSync,
  randomBytes,
  sign,
} from "node:crypto";
import { isIP } from "node:net";
import { bits, der, unsigned, octets, oid, sequence, set, time, utf8, yes } from "./der.ts";

/** A certificate and its private key, as PEM. */
export interface Certified {
  readonly cert: string;
  readonly key: string;
}

export interface Validity {
  readonly notBefore: Date;
  readonly notAfter: Date;
}

const DAY_MS = 24 * 3_600_000;
/** For clocks that are a little behind. */
const SKEW_MS = 5 * 60_000;

const ECDSA_SHA256 = sequence(oid("1.2.840.10045.4.3.2"));
const BASIC_CONSTRAINTS = "2.5.29.19";
const KEY_USAGE = "2.5.29.15";
const EXTENDED_KEY_USAGE = "2.5.29.37";
const ALT_NAMES = "2.5.29.17";
const KEY_ID = "2.5.29.14";
const AUTHORITY_KEY_ID = "2.5.29.35";
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";

/** From a little before now. */
export function validFor(days: number): Validity {
  const nowMs = Date.now();
  return { notBefore: new Date(nowMs - SKEW_MS), notAfter: new Date(nowMs + days * DAY_MS) };
}

export function createAuthority(name: string, validity: Validity): Certified {
  const keys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const subject = nameOf(name);
  const extensions = [
    extension(BASIC_CONSTRAINTS, sequence(yes, unsigned(Buffer.of(0))), true),
    // keyCertSign and cRLSign.
    extension(KEY_USAGE, bits(Buffer.of(0b0000_0110), 1), true),
    extension(KEY_ID, octets(keyId(keys.publicKey))),
  ];
  const cert = signed(keys.privateKey, { issuer: subject, subject, validity, publicKey: keys.publicKey, extensions });
  return { cert, key: pemOf(keys.privateKey) };
}

/**
 * A certificate for both ends of a connection.
 *
 * @param names DNS names, IP addresses and URIs.
 */
export function signLeaf(authority: Certified, names: readonly string[], validity: Validity): Certified {
  const keys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const issuer = new X509Certificate(authority.cert);
  const extensions = [
    extension(BASIC_CONSTRAINTS, sequence(), true),
    // digitalSignature.
    extension(KEY_USAGE, bits(Buffer.of(0b1000_0000), 7), true),
    extension(EXTENDED_KEY_USAGE, sequence(oid(SERVER_AUTH), oid(CLIENT_AUTH))),
    extension(ALT_NAMES, sequence(...names.map(altName))),
    extension(KEY_ID, octets(keyId(keys.publicKey))),
    extension(AUTHORITY_KEY_ID, sequence(der(0x80, keyId(issuer.publicKey)))),
  ];
  const cert = signed(createPrivateKey(authority.key), {
    issuer: nameOf(/^CN=(.*)$/m.exec(issuer.subject)?.[1] ?? ""),
    subject: nameOf("tandem"),
    validity,
    publicKey: keys.publicKey,
    extensions,
  });
  return { cert, key: pemOf(keys.privateKey) };
}

interface Content {
  readonly issuer: Buffer;
  readonly subject: Buffer;
  readonly validity: Validity;
  readonly publicKey: KeyObject;
  readonly extensions: readonly Buffer[];
}

function signed(key: KeyObject, { issuer, subject, validity, publicKey, extensions }: Content): string {
  const content = sequence(
    der(0xa0, unsigned(Buffer.of(2))), // Version 3.
    unsigned(Buffer.concat([Buffer.of(1), randomBytes(15)])),
    ECDSA_SHA256,
    issuer,
    sequence(time(validity.notBefore), time(validity.notAfter)),
    subject,
    publicKey.export({ type: "spki", format: "der" }),
    der(0xa3, sequence(...extensions)),
  );
  const bytes = sequence(content, ECDSA_SHA256, bits(sign("sha256", content, key)));
  const lines = bytes.toString("base64").match(/.{1,64}/g)!;
  return `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
}

function extension(id: string, value: Buffer, critical = false): Buffer {
  return sequence(oid(id), ...(critical ? [yes] : []), octets(value));
}

function nameOf(commonName: string): Buffer {
  return sequence(set(sequence(oid("2.5.4.3"), utf8(commonName))));
}

function altName(name: string): Buffer {
  if (isIP(name) !== 0) return der(0x87, addressBytes(name));
  return der(name.includes("://") ? 0x86 : 0x82, Buffer.from(name, "ascii"));
}

function addressBytes(address: string): Buffer {
  if (isIP(address) === 4) return Buffer.from(address.split(".").map(Number));
  // The URL parser writes an IPv4 tail as hexadecimal groups.
  const [head = "", tail] = new URL(`http://[${address}]`).hostname.slice(1, -1).split("::");
  const groups = (text: string): string[] => (text === "" ? [] : text.split(":"));
  const [before, after] = [groups(head), groups(tail ?? "")];
  const zeros = Array.from({ length: 8 - before.length - after.length }, () => "0");
  return Buffer.from([...before, ...zeros, ...after].map((group) => group.padStart(4, "0")).join(""), "hex");
}

function keyId(key: KeyObject): Buffer {
  return createHash("sha1")
    .update(key.export({ type: "spki", format: "der" }))
    .digest();
}

function pemOf(key: KeyObject): string {
  return key.export({ type: "pkcs8", format: "pem" }).toString();
}
