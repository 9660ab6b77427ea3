// Who may call: the clients' API key, and the names in the Host header that count as this server's own.
//
// The names are against DNS rebinding: a web page may point its own name at 127.0.0.1, and then its scripts talk to this
// server as their own origin, past everything that browsers hold against pages of others. What gives it away is the name
// in the Host header. Where a secret is asked for, or others than this machine can connect anyway, any name will do.
import type { IncomingHttpHeaders } from "node:http";
import { isLoopbackHost, splitAddress } from "../../common/address.ts";
import { ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import { createGate } from "../../rpc/access.ts";
import type { RouterConfig } from "../config.ts";
import { REQUEST_HEADERS } from "../serving/headers.ts";

/** @throws ServiceError `permission_denied` or `unauthenticated` */
export type AccessCheck = (headers: IncomingHttpHeaders) => void;

export interface RestAccess {
  /** The name of every path but RouterService's. */
  readonly host: AccessCheck;
  /** The name of RouterService, which has a secret of its own. */
  readonly adminHost: AccessCheck;
  readonly key: AccessCheck;
  /** The key too, where others than this machine can connect: of what names instances and models. */
  readonly inside: AccessCheck;
  /** Whether anyone who can connect may see the names of instances and models. */
  readonly tellsAll: boolean;
}

export type AccessSettings = Pick<RouterConfig["rest"], "listen" | "advertise" | "hosts"> &
  RouterConfig["access"] & { readonly inClear: boolean };

/** In OpenAI's words. */
const REFUSALS = {
  missing: () => "You didn't provide an API key. Send it in a header: `Authorization: Bearer YOUR_KEY`.",
  wrong: () => "Incorrect API key provided.",
};

/** Warns the operator of what is open to other machines. */
export function restAccess({ listen, advertise, hosts, apiKey, token, inClear }: AccessSettings, log: Log): RestAccess {
  const gate = createGate({ apiKey }, REFUSALS);
  const key: AccessCheck = (headers) => {
    const refusal = gate("key", headers[REQUEST_HEADERS.authorization.name]);
    if (refusal !== undefined) throw refusal;
  };
  if (!isLoopbackHost(splitAddress(listen).host)) {
    if (inClear) {
      const warning =
        "REST is served in clear beyond this machine: anyone who can read the network reads prompts and keys";
      log.warn(warning, { listen, cure: "tls.cert, tls.key and tls.ca, or a TLS proxy in front" });
    }
    if (apiKey === "") {
      const warning =
        "REST is reachable from other machines and no API key is set: anyone who can connect can use the models";
      log.warn(warning, { listen, cure: "--api-key" });
    }
    return { host: anyName, adminHost: anyName, key, inside: key, tellsAll: apiKey === "" };
  }
  const names = new Set(hosts.map((name) => nameOf(name) ?? name.toLowerCase()));
  const advertised = nameOf(advertise ?? "");
  if (advertised !== undefined) names.add(advertised);
  return {
    host: apiKey === "" ? refuseOthers(names, "an API key (--api-key)") : anyName,
    adminHost: token === "" ? refuseOthers(names, "a join token (--token)") : anyName,
    key,
    inside: anyName,
    tellsAll: true,
  };
}

function anyName(): void {}

function refuseOthers(names: ReadonlySet<string>, secret: string): AccessCheck {
  return (headers) => {
    const host = headers[REQUEST_HEADERS.host.name];
    // HTTP/1.0 may leave it out, and no browser does.
    if (host === undefined) return;
    const name = nameOf(host);
    if (name !== undefined && (isOwn(name) || names.has(name))) return;
    const [shown, cure] = name === undefined ? ["what the Host header says", "NAME"] : [`the name ${name}`, name];
    throw new ServiceError(
      "permission_denied",
      `This server listens on loopback without ${secret}, so it answers only where it is called localhost or by an address: ` +
        `under ${shown} a web page could reach it. If that name is meant, start the router with --rest.hosts ${cure} (or TANDEM_REST_HOSTS), or with ${secret}.`,
    );
  };
}

/**
 * Names that no foreign page can have. DNS can't point an address elsewhere, and browsers don't look up names under
 * localhost (RFC 6761, 6.3).
 */
function isOwn(name: string): boolean {
  return (
    isLoopbackHost(name) || name.endsWith(".localhost") || name.startsWith("[") || /^\d{1,3}(\.\d{1,3}){3}$/.test(name)
  );
}

/** `host` or `host:port` without the port, in lower case; an IPv6 address keeps its brackets. */
function nameOf(host: string): string | undefined {
  const name = /^(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?$/.exec(host)?.[1]?.toLowerCase();
  // A dot at the end only marks a fully qualified name.
  return name?.endsWith(".") === true ? name.slice(0, -1) : name;
}
