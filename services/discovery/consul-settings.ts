// How to reach Consul: settings, and the variables that Consul's own tools read.
// Source: https://developer.hashicorp.com/consul/commands#environment-variables; hashicorp/consul api/api.go.
import { readdirSync, readFileSync } from "node:fs";
import type { RequestOptions } from "node:https";
import { join } from "node:path";
import {
  boolean,
  choice,
  ConfigError,
  milliseconds,
  address as addressOption,
  secret,
  text,
  type Values,
} from "../common/config.ts";

/** Settings of every process that talks to Consul. */
export const consulSettings = {
  address: text(
    "consul.address",
    "Consul's HTTP API: host:port, http://host:port, https://host:port or unix:///path. Preferably the agent on this machine.",
    { default: "127.0.0.1:8500", env: ["CONSUL_HTTP_ADDR"] },
  ),
  token: secret("consul.token", "ACL token. docs/consul.md lists the policies that the token needs.", {
    env: ["CONSUL_HTTP_TOKEN"],
  }),
  tokenFile: text(
    "consul.token_file",
    "File that holds the ACL token. The file takes precedence over consul.token, and is read again when Consul denies a request.",
    { default: "", env: ["CONSUL_HTTP_TOKEN_FILE"] },
  ),
  httpAuth: secret("consul.http_auth", "user:password for a proxy in front of Consul.", {
    env: ["CONSUL_HTTP_AUTH"],
  }),
  datacenter: text("consul.datacenter", "Datacenter to watch. Empty: the agent's datacenter.", { default: "" }),
  tlsEnabled: boolean("consul.tls.enabled", "Use HTTPS with Consul. Not needed if the address begins with https://.", {
    default: false,
    env: ["CONSUL_HTTP_SSL"],
  }),
  tlsCaFile: text("consul.tls.ca_file", "PEM file of the certificate authority that signed Consul's certificate.", {
    default: "",
    env: ["CONSUL_CACERT"],
  }),
  tlsCaPath: text("consul.tls.ca_path", "Folder of PEM files of certificate authorities.", {
    default: "",
    env: ["CONSUL_CAPATH"],
  }),
  tlsCertFile: text("consul.tls.cert_file", "PEM file of the client certificate, if Consul requires one.", {
    default: "",
    env: ["CONSUL_CLIENT_CERT"],
  }),
  tlsKeyFile: text("consul.tls.key_file", "PEM file of the client certificate's key.", {
    default: "",
    env: ["CONSUL_CLIENT_KEY"],
  }),
  tlsServerName: text(
    "consul.tls.server_name",
    "Name that Consul's certificate is checked against, if different from the host of the address.",
    { default: "", env: ["CONSUL_TLS_SERVER_NAME"] },
  ),
  tlsVerify: boolean("consul.tls.verify", "Check Consul's certificate.", {
    default: true,
    env: ["CONSUL_HTTP_SSL_VERIFY"],
  }),
  servicePrefix: text(
    "consul.service_prefix",
    "Services are called PREFIX-router, PREFIX-prefill and PREFIX-decode. ACL rules refer to these names.",
    { default: "tandem" },
  ),
} as const;

/** Additional settings of a process that registers itself. */
export const consulCheckSettings = {
  check: choice(
    "consul.check",
    "How Consul finds out that this process is alive. The process always reports its state. grpc: the agent also calls grpc.health.v1. ttl: the agent makes no call; use this if the agent can't reach the process.",
    ["grpc", "ttl"],
    { default: "grpc" },
  ),
  checkAddress: addressOption(
    "consul.check_address",
    "host:port at which the agent calls grpc.health.v1, if different from the advertised address.",
    { optional: true },
  ),
  deregisterAfterMs: milliseconds(
    "consul.deregister_after_ms",
    "How long a check may fail before Consul removes the process. One minute is Consul's minimum.",
    { default: 60_000, min: 60_000, max: Infinity },
  ),
} as const;

/** Keys of settings that were removed. */
export const REMOVED_CONSUL_KEYS = {
  "consul.check_interval_ms": "the agent checks once a second",
  "consul.ttl_ms": "with consul.check=ttl a check fails after 5 s of silence",
} as const;

export type ConsulConfig = Values<typeof consulSettings>;
export type ConsulCheckConfig = Values<typeof consulCheckSettings>;

/**
 * Where Consul is, in the form that the package passes on to node:http or node:https. An IPv6 host has brackets.
 *
 * @throws ConfigError for an address that is not one, or a file that can't be read
 */
export function consulServer(
  config: ConsulConfig,
): RequestOptions & { readonly secure: boolean; readonly defaults: { readonly dc?: string } } {
  const { address, datacenter: dc } = config;
  const [, scheme = "", rest = ""] = /^(?:([a-z]+):\/\/)?(.*)$/.exec(address)!;
  if (!["", "http", "https", "unix"].includes(scheme)) {
    throw new ConfigError(`consul.address ${address}: expected host:port, http://, https:// or unix://.`);
  }
  // As in Consul's own tools: http:// never switches off the TLS that another setting asked for.
  const secure = scheme === "https" || config.tlsEnabled;
  const server = { secure, defaults: dc === "" ? {} : { dc }, ...(secure ? tlsOf(config) : {}) };
  if (scheme === "unix") return { ...server, socketPath: rest };
  const url = URL.canParse(`http://${rest}`) ? new URL(`http://${rest}`) : null;
  if (url === null || url.hostname === "" || url.pathname !== "/") {
    throw new ConfigError(`consul.address ${address}: expected host:port, such as 127.0.0.1:8500.`);
  }
  // URL leaves out the port that its scheme has by default; Consul's tools take the text as it is.
  const port = /:(\d+)\/?$/.exec(rest)?.[1] ?? (scheme === "" ? 8500 : secure ? 443 : 80);
  return { ...server, host: url.hostname, port: Number(port) };
}

/** A wildcard address can be listened on, but not dialed. @throws ConfigError */
export function requireDialable(
  key: "rest" | "grpc",
  { advertise, listen }: { readonly advertise: string | undefined; readonly listen: string },
): void {
  const address = advertise ?? listen;
  if (!/^(0\.0\.0\.0|\[::\]):/.test(address)) return;
  throw new ConfigError(
    `--registry.kind consul needs an address that others can dial, and ${address} is not one: give --${key}.advertise HOST:PORT.`,
  );
}

/** @throws ConfigError */
export function readConsulToken({ token, tokenFile }: ConsulConfig): string {
  const inFile = fileAt("consul.token_file", tokenFile)?.toString().trim() ?? "";
  return inFile === "" ? token : inFile;
}

function tlsOf(config: ConsulConfig): RequestOptions {
  const { tlsCaFile: caFile, tlsCaPath: caPath } = config;
  const inFolder = caPath === "" ? [] : reading("consul.tls.ca_path", () => readdirSync(caPath).sort());
  const authorities = [caFile, ...inFolder.map((name) => join(caPath, name))];
  const ca = authorities.flatMap((file) => fileAt("consul.tls.ca_file", file) ?? []);
  return {
    ca: ca.length === 0 ? undefined : ca,
    cert: fileAt("consul.tls.cert_file", config.tlsCertFile),
    key: fileAt("consul.tls.key_file", config.tlsKeyFile),
    servername: config.tlsServerName || undefined,
    rejectUnauthorized: config.tlsVerify,
  };
}

function fileAt(key: string, path: string): Buffer | undefined {
  return path === "" ? undefined : reading(key, () => readFileSync(path));
}

function reading<T>(key: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw new ConfigError(`${key}: ${(error as Error).message}`);
  }
}
