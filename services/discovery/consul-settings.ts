// How to reach Consul: settings, and the variables that Consul's own tools read.
// Source: https://developer.hashicorp.com/consul/commands#environment-variables; hashicorp/consul api/api.go.
import { readdirSync, readFileSync } from "node:fs";
import type { RequestOptions } from "node:https";
import { join } from "node:path";
import {
  boolean,
  choice,
  ConfigError,
  integer,
  address as addressOption,
  secret,
  text,
  type Config,
} from "../common/config.ts";

/** Of every process that talks to Consul. */
export const consulSettings = {
  "consul.address": text({
    default: "127.0.0.1:8500",
    env: ["CONSUL_HTTP_ADDR"],
    doc: "Consul's HTTP API: host:port, http://host:port, https://host:port or unix:///path. Best the agent on this machine.",
  }),
  "consul.token": secret({
    env: ["CONSUL_HTTP_TOKEN"],
    doc: "ACL token. docs/consul.md lists the policies that it needs.",
  }),
  "consul.token_file": text({
    default: "",
    env: ["CONSUL_HTTP_TOKEN_FILE"],
    doc: "File that holds the ACL token. It goes before consul.token, and is read again when Consul denies something.",
  }),
  "consul.http_auth": secret({
    env: ["CONSUL_HTTP_AUTH"],
    doc: "user:password for a proxy that stands before Consul.",
  }),
  "consul.datacenter": text({ default: "", doc: "Datacenter to watch. Empty: that of the agent." }),
  "consul.tls.enabled": boolean({
    default: false,
    env: ["CONSUL_HTTP_SSL"],
    doc: "Speak HTTPS with Consul. Not needed where the address says https://.",
  }),
  "consul.tls.ca_file": text({
    default: "",
    env: ["CONSUL_CACERT"],
    doc: "PEM file of the authority that signed Consul's certificate.",
  }),
  "consul.tls.ca_path": text({ default: "", env: ["CONSUL_CAPATH"], doc: "Folder of such files." }),
  "consul.tls.cert_file": text({
    default: "",
    env: ["CONSUL_CLIENT_CERT"],
    doc: "PEM file of our certificate, where Consul wants one.",
  }),
  "consul.tls.key_file": text({ default: "", env: ["CONSUL_CLIENT_KEY"], doc: "PEM file of its key." }),
  "consul.tls.server_name": text({
    default: "",
    env: ["CONSUL_TLS_SERVER_NAME"],
    doc: "Name that Consul's certificate is checked against, where that is not the host of the address.",
  }),
  "consul.tls.verify": boolean({ default: true, env: ["CONSUL_HTTP_SSL_VERIFY"], doc: "Check Consul's certificate." }),
  "consul.service_prefix": text({
    default: "tandem",
    doc: "Services are called PREFIX-router, PREFIX-prefill and PREFIX-decode, which is what ACL rules are about.",
  }),
} as const;

/** Of a process that registers itself. */
export const consulCheckSettings = {
  "consul.check": choice(["grpc", "ttl"], {
    default: "grpc",
    doc: "How Consul finds out that this process is alive. Either way the process reports its state. grpc: the agent also asks grpc.health.v1. ttl: it does not, for an agent that can't reach the process.",
  }),
  "consul.check_address": addressOption({
    optional: true,
    doc: "host:port at which the agent asks grpc.health.v1, where that is not the advertised address.",
  }),
  "consul.deregister_after_ms": integer({
    default: 60_000,
    min: 60_000,
    unit: "ms",
    doc: "How long a check may fail before Consul removes the process. One minute is Consul's minimum.",
  }),
} as const;

export type ConsulConfig = Config<typeof consulSettings>;
export type ConsulCheckConfig = Config<typeof consulCheckSettings>;

export interface ConsulOptions {
  /** As the package takes it, and passes it on to node:http or node:https. An IPv6 host has its brackets. */
  readonly server: RequestOptions & { readonly secure: boolean; readonly defaults: { readonly dc?: string } };
  /** The address, for people. */
  readonly shown: string;
  readonly token: string;
  /** Empty where there is none. */
  readonly tokenFile: string;
  /** user:password */
  readonly auth: string;
}

/** @throws ConfigError for an address that is not one, or a file that can't be read */
export function consulOptions(config: ConsulConfig): ConsulOptions {
  const [shown, dc] = [config["consul.address"], config["consul.datacenter"]];
  const [, scheme = "", rest = ""] = /^(?:([a-z]+):\/\/)?(.*)$/.exec(shown)!;
  if (!["", "http", "https", "unix"].includes(scheme)) {
    throw new ConfigError(`consul.address ${shown}: expected host:port, http://, https:// or unix://.`);
  }
  // As Consul's own tools do it: http:// never switches off the TLS that another setting asked for.
  const secure = scheme === "https" || config["consul.tls.enabled"];
  const server = { secure, defaults: dc === "" ? {} : { dc }, ...(secure ? tlsOf(config) : {}) };
  const [token, tokenFile, auth] = [config["consul.token"], config["consul.token_file"], config["consul.http_auth"]];
  const common = { shown, token, tokenFile, auth };
  if (scheme === "unix") return { ...common, server: { ...server, socketPath: rest } };
  const url = URL.canParse(`http://${rest}`) ? new URL(`http://${rest}`) : null;
  if (url === null || url.hostname === "" || url.pathname !== "/") {
    throw new ConfigError(`consul.address ${shown}: expected host:port, such as 127.0.0.1:8500.`);
  }
  // URL leaves out the port that its scheme has by default; Consul's tools take the text as it is.
  const port = /:(\d+)\/?$/.exec(rest)?.[1] ?? (scheme === "" ? 8500 : secure ? 443 : 80);
  return { ...common, server: { ...server, host: url.hostname, port: Number(port) } };
}

/** @throws ConfigError */
export function readConsulToken({ token, tokenFile }: Pick<ConsulOptions, "token" | "tokenFile">): string {
  const inFile = fileAt("consul.token_file", tokenFile)?.toString().trim() ?? "";
  return inFile === "" ? token : inFile;
}

function tlsOf(config: ConsulConfig): RequestOptions {
  const { "consul.tls.ca_file": caFile, "consul.tls.ca_path": caPath } = config;
  const inFolder = caPath === "" ? [] : reading("consul.tls.ca_path", () => readdirSync(caPath).sort());
  const authorities = [caFile, ...inFolder.map((name) => join(caPath, name))];
  const ca = authorities.flatMap((file) => fileAt("consul.tls.ca_file", file) ?? []);
  return {
    ca: ca.length === 0 ? undefined : ca,
    cert: fileAt("consul.tls.cert_file", config["consul.tls.cert_file"]),
    key: fileAt("consul.tls.key_file", config["consul.tls.key_file"]),
    servername: config["consul.tls.server_name"] || undefined,
    rejectUnauthorized: config["consul.tls.verify"],
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
