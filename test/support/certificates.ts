// Certificates for tests, and processes' ends that use them.
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Certified,
  type Validity,
  createAuthority,
  signLeaf,
  validFor,
} from "../../clients/cli/certs/authority.ts";
import type { TlsSettings } from "../../services/rpc/tls-settings.ts";

export const HERE = ["localhost", "127.0.0.1"];
export const EXPIRED: Validity = {
  notBefore: new Date(Date.now() - 7_200_000),
  notAfter: new Date(Date.now() - 3_600_000),
};

export interface CertificateFolder extends Disposable {
  readonly authority: Certified;
  /** Writes the files of one process, as a rotation does, and returns their settings. */
  write(name: string, leaf: Certified, ca?: string): TlsSettings;
  /** Signs and writes. */
  issue(name: string, o?: { names?: readonly string[]; validity?: Validity; authority?: Certified }): TlsSettings;
}

export function certificateFolder(): CertificateFolder {
  const folder = mkdtempSync(join(tmpdir(), "tandem-certs-"));
  const authority = createAuthority("tests", validFor(1));
  const put = (file: string, content: string): string => {
    const path = join(folder, file);
    writeFileSync(`${path}.tmp`, content);
    renameSync(`${path}.tmp`, path);
    return path;
  };
  const write: CertificateFolder["write"] = (name, { cert, key }, ca = authority.cert) => ({
    key: put(`${name}-key.pem`, key),
    cert: put(`${name}.pem`, cert),
    ca: put(`${name}-ca.pem`, ca),
    peerIds: [],
  });
  return {
    authority,
    write,
    issue: (name, { names = HERE, validity = validFor(1), authority: by = authority } = {}) =>
      write(name, signLeaf(by, names, validity)),
    [Symbol.dispose]: () => rmSync(folder, { recursive: true }),
  };
}
