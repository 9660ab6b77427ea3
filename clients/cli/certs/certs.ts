// `tandem certs DIR`: an authority and a certificate for trying out TLS, and new ones for a rotation.
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { ConfigError, defineConfig, integer, list, loadConfig, text } from "../../../services/common/config.ts";
import { type Certified, createAuthority, signLeaf, validFor } from "./authority.ts";

export const certsConfig = defineConfig(
  "certs",
  {
    dir: text("dir", "Folder for the files. Same as DIR.", { optional: true }),
    name: text("name", "Name of the certificate's files: NAME.pem and NAME-key.pem.", { default: "tandem" }),
    hosts: list(
      "host",
      "Adds a name to the certificate: a DNS name or IP address under which others dial the process, or a URI such as " +
        "spiffe://DOMAIN/NAME. It always has localhost, 127.0.0.1, ::1 and this machine's name. Repeatable.",
    ),
    days: integer("days", "Days until the certificate expires. The authority lasts ten years.", {
      default: 90,
      min: 1,
      max: 3650,
      unit: "days",
    }),
  },
  {
    summary:
      "Makes a certificate authority for development, and a certificate of it for tls.cert, tls.key and tls.ca. If DIR " +
      "has an authority already, it signs another certificate: running processes take up the new files by themselves.",
    usage: "tandem certs DIR [--name NAME] [--host NAME] [--days 90]",
  },
);

const AUTHORITY_DAYS = 3_650;

export async function runCerts(argv: readonly string[]): Promise<void> {
  process.stdout.write(`${certs(argv)}\n`);
}

/** Writes the files. Returns the text to print, without the last newline. @throws ConfigError */
export function certs(argv: readonly string[]): string {
  const [first, ...rest] = argv;
  const named = first !== undefined && !first.startsWith("-");
  const config = loadConfig(certsConfig, { argv: named ? rest : argv, env: {} });
  const dir = named ? first : config.dir;
  if (dir === undefined) throw new ConfigError("certs needs a folder: tandem certs DIR.");
  if (!/^[\w.-]+$/.test(config.name) || config.name === "ca")
    throw new ConfigError(`--name ${config.name}: expected letters, digits, dots and hyphens, and not "ca".`);
  const files = writeCertificates(dir, config);
  return `${files.isNew ? "Made an authority and" : "Signed"} a certificate, valid for ${config.days} days. Start each process with:

  export TANDEM_TLS_CERT=${files.cert}
  export TANDEM_TLS_KEY=${files.key}
  export TANDEM_TLS_CA=${files.ca}

Clients trust it with: curl --cacert ${files.ca} ..., or NODE_EXTRA_CA_CERTS, SSL_CERT_FILE.
Keep ${files.caKey} to yourself: with it anyone can join the deployment.`;
}

interface Files {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
  readonly caKey: string;
  /** Whether the authority was made now. */
  readonly isNew: boolean;
}

function writeCertificates(
  dir: string,
  { name, hosts, days }: { readonly name: string; readonly hosts: readonly string[]; readonly days: number },
): Files {
  const folder = resolve(dir);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const at = (file: string): string => join(folder, file);
  const files = { cert: at(`${name}.pem`), key: at(`${name}-key.pem`), ca: at("ca.pem"), caKey: at("ca-key.pem") };
  const isNew = !existsSync(files.ca);
  let authority: Certified;
  if (isNew) {
    authority = createAuthority("Tandem development", validFor(AUTHORITY_DAYS));
    replaceFile(files.caKey, authority.key, 0o600);
    replaceFile(files.ca, authority.cert, 0o644);
  } else authority = { cert: readFileSync(files.ca, "utf8"), key: readFileSync(files.caKey, "utf8") };
  const names = new Set(["localhost", "127.0.0.1", "::1", hostname(), ...hosts]);
  const leaf = signLeaf(authority, [...names], validFor(days));
  replaceFile(files.key, leaf.key, 0o600);
  replaceFile(files.cert, leaf.cert, 0o644);
  return { ...files, isNew };
}

/** In one step: a process that reads the file meanwhile never sees half of it. */
function replaceFile(path: string, content: string, mode: number): void {
  const draft = `${path}.${process.pid}.tmp`;
  writeFileSync(draft, content, { mode });
  renameSync(draft, path);
}
