// Mutual TLS: this process's certificate, which is read again when its files change, and what peers' certificates must
// show. A certificate of the same authority takes the place of the join token.
import { X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import {
  type ConnectionOptions,
  type PeerCertificate,
  type SecureContext,
  type TLSSocket,
  checkServerIdentity,
  createSecureContext,
} from "node:tls";
import { type Clock, type Timer, systemClock } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import { ConfigError } from "../common/run-main.ts";
import type { TlsSettings } from "./tls-settings.ts";

/** What is wrong with a peer's certificate, by the remedy. Each text follows "The peer's" or "The caller's". */
export const CERTIFICATE_FAULTS = {
  "no certificate": "certificate is missing: set tls.cert, tls.key and tls.ca on both sides.",
  "certificate expired": "certificate has expired, or is not valid yet.",
  "unknown authority": "certificate is not from an authority in tls.ca.",
  "wrong name": "certificate has another name than the dialed one, or none of tls.peer_ids.",
} as const;
export type CertificateFault = keyof typeof CERTIFICATE_FAULTS;

const POLL_MS = 1_000;
/** A certificate that expires sooner is reported. */
const EXPIRES_SOON_MS = 24 * 3_600_000;

interface Loaded {
  readonly context: SecureContext;
  readonly pems: { readonly cert: Buffer; readonly key: Buffer; readonly ca: Buffer };
  readonly trustDomain: string | undefined;
  /** Of the files, when they were read. */
  readonly stamp: string;
}

/** @throws ConfigError if only some of the files are given, or one can't be used. */
export function openTls(
  settings: TlsSettings,
  { log, clock = systemClock }: { readonly log: Log; readonly clock?: Clock },
): Tls | undefined {
  const given = (["cert", "key", "ca"] as const).filter((name) => settings[name] !== "");
  if (given.length === 0) return undefined;
  if (given.length < 3) throw new ConfigError(`tls.${given[0]} is not enough: give tls.cert, tls.key and tls.ca.`);
  return new Tls(settings, log, clock);
}

export class Tls implements Disposable {
  readonly #settings: TlsSettings;
  readonly #log: Log;
  readonly #clock: Clock;
  readonly #listeners = new Set<() => void>();
  #loaded: Loaded;
  #timer: Timer;
  #complaint = "";

  constructor(settings: TlsSettings, log: Log, clock: Clock) {
    this.#settings = settings;
    this.#log = log;
    this.#clock = clock;
    try {
      this.#loaded = this.#load();
    } catch (error) {
      throw new ConfigError(
        `The certificates of tls.cert, tls.key and tls.ca can't be used: ${(error as Error).message}`,
      );
    }
    this.#timer = clock.setTimer(POLL_MS, () => this.#poll());
  }

  /** What a server needs, now. */
  get pems(): Loaded["pems"] {
    return this.#loaded.pems;
  }

  /** Called when the files have changed: from now on new handshakes should use them. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** To dial `host` with this process's certificate. */
  dialing(host: string): ConnectionOptions {
    return {
      secureContext: this.#loaded.context,
      ALPNProtocols: ["h2"],
      checkServerIdentity: (_name, certificate) => (this.#isServer(host, certificate) ? undefined : new NameError()),
    };
  }

  /** What is wrong with the certificate of a caller; undefined if it is a member of the deployment. */
  callerFault(socket: TLSSocket): CertificateFault | undefined {
    const certificate = socket.getPeerCertificate();
    if (certificate?.raw === undefined) return "no certificate";
    if (!socket.authorized) return faultOf(String(socket.authorizationError));
    return this.#isMember(namesOf(certificate)) ? undefined : "wrong name";
  }

  [Symbol.dispose](): void {
    this.#timer.cancel();
  }

  #isServer(host: string, certificate: PeerCertificate): boolean {
    const names = namesOf(certificate);
    if (!this.#isMember(names)) return false;
    // A certificate of a mesh is for a service and not for a host.
    const { trustDomain } = this.#loaded;
    if (trustDomain !== undefined && names.some((name) => trustDomainOf(name) === trustDomain)) return true;
    return checkServerIdentity(host, certificate) === undefined;
  }

  #isMember(names: readonly string[]): boolean {
    const { peerIds } = this.#settings;
    if (peerIds.length === 0) return true;
    return names.some((name) =>
      peerIds.some((id) => (id.endsWith("*") ? name.startsWith(id.slice(0, -1)) : name === id)),
    );
  }

  #load(): Loaded {
    const { cert, key, ca } = this.#settings;
    const stamp = this.#stamp();
    const pems = { cert: readFileSync(cert), key: readFileSync(key), ca: readFileSync(ca) };
    // Throws if the key is another one's.
    const context = createSecureContext(pems);
    const own = new X509Certificate(pems.cert);
    const trustDomain = namesIn(own.subjectAltName ?? "")
      .map(trustDomainOf)
      .find((domain) => domain !== undefined);
    const leftMs = Date.parse(own.validTo) - Date.now();
    const fields = { names: own.subjectAltName, validTo: new Date(own.validTo).toISOString() };
    if (leftMs < EXPIRES_SOON_MS) this.#log.warn("the certificate in tls.cert expires soon or has expired", fields);
    else this.#log.info("certificate loaded", fields);
    return { context, pems, trustDomain, stamp };
  }

  #stamp(): string {
    const { cert, key, ca } = this.#settings;
    return [cert, key, ca]
      .map((path) => statSync(path))
      .map(({ ino, mtimeMs, size }) => `${ino} ${mtimeMs} ${size}`)
      .join();
  }

  /** Files are written one after another: until all fit together, the former ones stay in use. */
  #poll(): void {
    try {
      if (this.#stamp() !== this.#loaded.stamp) {
        this.#loaded = this.#load();
        this.#complaint = "";
        for (const listener of this.#listeners) listener();
      }
    } catch (error) {
      const because = (error as Error).message;
      if (because !== this.#complaint)
        this.#log.warn("changed certificates can't be used; the former ones stay in use", { because });
      this.#complaint = because;
    }
    this.#timer = this.#clock.setTimer(POLL_MS, () => this.#poll());
  }
}

class NameError extends Error {
  readonly code = "ERR_TLS_CERT_ALTNAME_INVALID";
}

/** What a failed handshake says of the peer's certificate; undefined if it failed for another reason. */
export function handshakeFault(error: Error | undefined): CertificateFault | undefined {
  const { code = "" } = (error ?? {}) as NodeJS.ErrnoException;
  // The peer answers in clear.
  if (code === "EPROTO" || code === "ERR_SSL_WRONG_VERSION_NUMBER") return "no certificate";
  return /CERT|SIGNED|SIGNATURE|ISSUER|PURPOSE/.test(code) ? faultOf(code) : undefined;
}

/** @param code OpenSSL's name of a failed verification. */
function faultOf(code: string): CertificateFault {
  if (/EXPIRED|NOT_YET_VALID/.test(code)) return "certificate expired";
  return code === "ERR_TLS_CERT_ALTNAME_INVALID" ? "wrong name" : "unknown authority";
}

function namesOf({ subjectaltname = "" }: PeerCertificate): readonly string[] {
  return namesIn(subjectaltname);
}

/**
 * DNS names and URIs of Node's text for the subject's alternative names. Node quotes a name that could be taken for
 * more than one; such a name counts for nothing here.
 */
function namesIn(altNames: string): readonly string[] {
  const unquoted = altNames.replace(/"(?:[^"\\]|\\.)*"/g, '"');
  return [...unquoted.matchAll(/(?:^|, )(?:DNS|URI):([^",]+)(?=,|$)/g)].map(([, name]) => name!);
}

function trustDomainOf(name: string): string | undefined {
  return /^spiffe:\/\/([^/]+)\//.exec(name)?.[1];
}
