// Against DNS rebinding: a web page may point its own name at 127.0.0.1, and then its scripts talk to this server as
// their own origin, past everything that browsers hold against pages of others. What gives it away is the name in the
// Host header. Where a secret is asked for, or others than this machine can connect anyway, any name will do.
import { isLoopbackHost } from "../../common/loopback.ts";
import { ServiceError } from "../../common/errors.ts";
import { isLoopback } from "./server.ts";

/** @throws ServiceError `permission_denied` if `host`, the header's value, is not a name of this server */
export type HostCheck = (host: string | undefined) => void;

/** One for each kind of door, for each has its own secret. */
export interface HostChecks {
  readonly rest: HostCheck;
  /** RouterService. */
  readonly admin: HostCheck;
}

export interface HostSettings {
  readonly listen: string;
  readonly advertise: string | undefined;
  /** Further names. */
  readonly hosts: readonly string[];
  readonly apiKey: string;
  readonly token: string;
}

export function hostChecks(settings: HostSettings): HostChecks {
  if (!isLoopback(settings.listen)) return { rest: anyHost, admin: anyHost };
  const names = new Set(settings.hosts.map((name) => nameOf(name) ?? name.toLowerCase()));
  const advertised = settings.advertise === undefined ? undefined : nameOf(settings.advertise);
  if (advertised !== undefined) names.add(advertised);
  return {
    rest: settings.apiKey === "" ? refuseOthers(names, "an API key (--api-key)") : anyHost,
    admin: settings.token === "" ? refuseOthers(names, "a join token (--token)") : anyHost,
  };
}

export function anyHost(): void {}

function refuseOthers(names: ReadonlySet<string>, secret: string): HostCheck {
  return (host) => {
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
  // The dot at its end only says that the name is whole.
  return name?.endsWith(".") === true ? name.slice(0, -1) : name;
}
